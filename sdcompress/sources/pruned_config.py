"""How a component says in its config.json what was pruned that no stock config can say.

`quantization_config.pruning` = {"removed": modules that are bypassed, "widths": {module: heads or channels inside}}:
the quantizer that `import sdcompress` registers with diffusers rebuilds the modules before weights are loaded, whether
or not layers are quantized as well. A stock loader alone says that it does not know the method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdcompress.sources.spec import ComponentSpec

METHOD = "sdcompress"
SCHEMA = 2  # of a quantization_config with pruning: versions that do not know it say so


@dataclass(frozen=True)
class Pruning:
    """Modules that are bypassed, and module -> how many heads (attention) or inner channels (others) it has left."""

    removed: tuple[str, ...] = ()
    widths: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.removed or self.widths)

    def to_dict(self) -> dict[str, Any]:
        return {"removed": list(self.removed), "widths": dict(self.widths)}


def pruning_of(config: Mapping[str, Any]) -> Pruning:
    """What a component's config says was pruned; nothing for a stock one."""
    quantization = config.get("quantization_config")
    return parse_pruning(quantization.get("pruning") if isinstance(quantization, Mapping) else None)


def parse_pruning(value: Mapping[str, Any] | None) -> Pruning:
    """The inverse of `Pruning.to_dict`; None is no pruning."""
    return Pruning(tuple(value["removed"]), dict(value["widths"])) if value else Pruning()


def marked(spec: ComponentSpec, pruning: Pruning) -> ComponentSpec:
    """The component with a config that says so; no word of it where nothing was pruned."""
    if not pruning:
        return spec
    quantization = {"quant_method": METHOD, "schema_version": SCHEMA, "layers": {}, "pruning": pruning.to_dict()}
    return spec.replace(config={**spec.config, "quantization_config": quantization})


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without its quantization, what was pruned still said."""
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    pruning = pruning_of(config)
    if pruning:
        plain["quantization_config"] = {
            "quant_method": METHOD, "schema_version": SCHEMA, "layers": {}, "pruning": pruning.to_dict(),
        }  # fmt: skip
    return plain


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Whether layers are quantized, by whatever method; being pruned is not being quantized."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping) or not quantization.get("quant_method"):
        return False
    return quantization["quant_method"] != METHOD or bool(quantization.get("layers"))
