"""What a component's config.json says of modules that were pruned, where the fields of stock configs cannot say it.

`quantization_config.pruning` = {"removed": bypassed modules, "widths": {module: heads or inner channels left}}. The
quantizer that `import sdcompress` registers with diffusers rebuilds the modules before weights are loaded, whether or
not layers are quantized too. A stock loader alone refuses the unknown method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdcompress.sources.spec import ComponentSpec

METHOD = "sdcompress"
SCHEMA = 2  # of a quantization_config with pruning, so that earlier versions refuse it


@dataclass(frozen=True)
class Pruning:
    """What was pruned of a component.

    Attributes:
        removed: modules that are bypassed.
        widths: module -> number of heads (attention) or inner channels (other modules) left.
    """

    removed: tuple[str, ...] = ()
    widths: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.removed or self.widths)

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json holds."""
        return {"removed": list(self.removed), "widths": dict(self.widths)}


def pruning_of(config: Mapping[str, Any]) -> Pruning:
    """Return what was pruned according to a component's config."""
    quantization = config.get("quantization_config")
    return parse_pruning(quantization.get("pruning") if isinstance(quantization, Mapping) else None)


def parse_pruning(value: Mapping[str, Any] | None) -> Pruning:
    """Return the pruning that `Pruning.to_dict` gave `value` for; None stands for no pruning."""
    return Pruning(tuple(value["removed"]), dict(value["widths"])) if value else Pruning()


def marked(spec: ComponentSpec, pruning: Pruning) -> ComponentSpec:
    """Return the component with the pruning in its config, or unchanged where nothing was pruned."""
    return spec.replace(config={**spec.config, **_quantization_config(pruning)}) if pruning else spec


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config without its quantization, but with its pruning."""
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    pruning = pruning_of(config)
    return {**plain, **_quantization_config(pruning)} if pruning else plain


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Return whether layers are quantized, by any method. A component that is only pruned is not quantized."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping) or not quantization.get("quant_method"):
        return False
    return quantization["quant_method"] != METHOD or bool(quantization.get("layers"))


def _quantization_config(pruning: Pruning) -> dict[str, Any]:
    return {
        "quantization_config": {
            "quant_method": METHOD,
            "schema_version": SCHEMA,
            "layers": {},
            "pruning": pruning.to_dict(),
        }
    }
