"""fuse_lora: add LoRAs to a component's weights before anything else is done with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sdcompress.backends.component import Component
from sdcompress.errors import ProblemList, UserError
from sdcompress.files.artifact import sha256_of
from sdcompress.lora.file import LoraFile, LowRank, open_lora
from sdcompress.planning.steps import Planned, Stage, StepWithFiles
from sdcompress.quant.format import overflows
from sdcompress.sources.spec import ComponentSpec

if TYPE_CHECKING:
    import torch

    from sdcompress.sources.source import Source


class WeightedLora(BaseModel):
    """A LoRA and its weight."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str = Field(min_length=1, description="the LoRA's file, or the folder that it is in")
    weight: float = Field(default=1.0, allow_inf_nan=False, description="the factor of what it adds")


class FuseLora(StepWithFiles):
    """Add LoRAs to a component's weights: W + weight * alpha / rank * up @ down.

    The sum is taken in float32 and stored in the weight's own dtype. A file must have keys for the component, and all
    of these must match a layer; its keys for other components are added where this step stands under those. `path` and
    `weight` of a single LoRA can stand without `files`.

    Examples:
        fuse_lora: {path: style.safetensors, weight: 0.8}
    """

    kind = "fuse_lora"
    stage = Stage.FUSE
    files: tuple[WeightedLora, ...] = Field(description="the LoRAs, each with path and weight")

    @field_validator("files")
    @classmethod
    def _at_least_one(cls, files: tuple[WeightedLora, ...]) -> tuple[WeightedLora, ...]:
        if not files:
            raise ValueError("must name at least one LoRA")
        return files

    @model_validator(mode="before")
    @classmethod
    def _single_file(cls, value: Any) -> Any:
        """Accept `path` and `weight` of a single LoRA in the place of a list."""
        if isinstance(value, Mapping) and "path" in value and "files" not in value:
            single = {name: value[name] for name in ("path", "weight") if name in value}
            return {**{name: other for name, other in value.items() if name not in single}, "files": [single]}
        return value

    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        loras = self._open(spec)
        notes = []
        for one, lora in zip(self.files, loras, strict=True):
            ranks = sorted({update.rank for update in lora.updates.values()})
            rank = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
            notes.append(f"{one.path} fused with weight {one.weight:g}: {len(lora.updates)} layers, rank {rank}")
            notes += [f"{one.path} has {count} layers for {owner} too, which are not fused here"
                      for owner, count in lora.others.items()]  # fmt: skip
        touched = {f"{layer}.weight" for lora in loras for layer in lora.updates}
        # As stored, in float32, what is added to it, and the result.
        largest = max(
            tensor.size_bytes + (12 * tensor.parameters if name in touched else 0)
            for name, tensor in spec.tensors.items()
        )
        return Planned(spec, notes=tuple(notes), working_bytes=largest, reads=tuple(lora.file for lora in loras))

    def modified(self, source: Source, component: str) -> Source:
        spec = source.components[component]
        updates: dict[str, list[tuple[float, LowRank]]] = {}
        for one, lora in zip(self.files, self._open(spec), strict=True):
            for layer, update in lora.updates.items():
                updates.setdefault(f"{layer}.weight", []).append((one.weight, update))
        reader = partial(_read_fused, source, component, updates)
        return replace(source, readers={**source.readers, component: reader})

    def apply(self, component: Component, planned: Planned) -> Component:
        fused = [
            {"path": one.path, "weight": one.weight, "sha256": sha256_of(file)}
            for one, file in zip(self.files, planned.reads, strict=True)
        ]
        facts = component.results.facts
        facts["fused_loras"] = [*facts.get("fused_loras", ()), *fused]
        return component

    def _open(self, spec: ComponentSpec) -> list[LoraFile]:
        found, problems = [], ProblemList()
        for index, one in enumerate(self.files):
            with problems.collect(f"files.{index}.path"):
                found.append(open_lora(self._folder / Path(one.path).expanduser(), spec))
        problems.raise_any()
        return found


def _read_fused(
    source: Source, component: str, updates: Mapping[str, list[tuple[float, LowRank]]], name: str
) -> torch.Tensor:
    """Return the component's tensor with what the LoRAs add to it."""
    from sdcompress.lora.fusing import fused

    tensor = source.reader(component)(name)
    if name not in updates:
        return tensor
    total = fused(tensor, updates[name])
    result = total.to(tensor.dtype)
    if overflows(result, total):
        raise UserError(
            f"{component}.{name}: holds {float(total.abs().max()):.3g} with the LoRAs, too large for its dtype; lower "
            f"their weights"
        )
    return result
