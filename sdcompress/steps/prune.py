"""prune: leave whole parts of a UNet out, as far as a stock diffusers config can say it.

Removing the mid block and all but one layer per block are the patterns of BK-SDM (Kim et al. 2023, arXiv:2305.15798,
section 3.1): down blocks keep their first layers, up blocks their first and their last, whose input widths are those of
a shallower UNet.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import Field

from sdcompress.errors import UserError
from sdcompress.spec import ComponentSpec, TensorSpec
from sdcompress.steps import Component, LayerOutcome, Planned, Record, Stage, Step

if TYPE_CHECKING:
    import torch

_LAYER = re.compile(r"^(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)$")


class Prune(Step):
    """`prune: {drop_mid_block: true, layers_per_block: 1}`: fewer parameters, in a UNet stock diffusers builds."""

    kind = "prune"
    stage = Stage.PRUNE
    drop_mid_block: bool = False
    layers_per_block: int | None = Field(default=None, ge=1)

    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        if spec.class_name != "UNet2DConditionModel":
            raise UserError(f"{spec.name} is a {spec.class_name}; only a UNet2DConditionModel can lose blocks")
        if not self.drop_mid_block and self.layers_per_block is None:
            raise UserError("nothing to prune; set drop_mid_block: true or layers_per_block: N")
        config = dict(spec.config)
        problems = []
        if self.drop_mid_block:
            if not any(name.startswith("mid_block.") for name in spec.tensors):
                problems.append(f"drop_mid_block: {spec.name} has no mid block")
            config["mid_block_type"] = None
        if self.layers_per_block is not None:
            before = config.get("layers_per_block", 2)
            if not isinstance(before, int) or self.layers_per_block >= before:
                problems.append(f"layers_per_block: {self.layers_per_block} is not less than the model's {before}")
            config["layers_per_block"] = self.layers_per_block
        if problems:
            raise UserError(problems)
        kept = self._kept(spec)
        tensors = {new: spec.tensors[old] for new, old in kept.items()}
        dropped = {name: tensor for name, tensor in spec.tensors.items() if name not in set(kept.values())}
        return Planned(spec.replace(config=config, tensors=tensors), tuple(_outcomes(dropped)))

    def apply(self, part: Component, planned: Planned, record: Record) -> Component:
        kept = self._kept(part.spec)

        def read(name: str) -> torch.Tensor:
            return part.read(kept[name])

        return part.becomes(planned.spec, read)

    def _kept(self, spec: ComponentSpec) -> dict[str, str]:
        """Tensor name in the pruned UNet -> its name before."""
        before = spec.config.get("layers_per_block", 2)
        kept = {}
        for name in spec.tensors:
            if self.drop_mid_block and name.startswith("mid_block."):
                continue
            match = _LAYER.match(name)
            if match is None or self.layers_per_block is None:
                kept[name] = name
                continue
            side, block, part, index, rest = match.groups()
            new = _new_index(int(index), side, before, self.layers_per_block)
            if new is not None:
                kept[f"{side}_blocks.{block}.{part}.{new}.{rest}"] = name
        return kept


def _new_index(index: int, side: str, before: int, after: int) -> int | None:
    """The layer's place in a block of `after` layers (an up block has one more), None if it is left out."""
    if side == "up" and index == before:
        return after  # the last layer of an up block takes the narrower skip connection
    return index if index < after else None


def _outcomes(dropped: dict[str, TensorSpec]) -> list[LayerOutcome]:
    modules: dict[str, int] = {}
    for name, tensor in dropped.items():
        match = _LAYER.match(name)
        module = "mid_block" if match is None else ".".join(name.split(".")[:4])
        modules[module] = modules.get(module, 0) + tensor.parameters
    return [LayerOutcome(module, "block", count, None, "removed") for module, count in modules.items()]
