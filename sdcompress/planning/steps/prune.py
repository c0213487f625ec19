"""prune: remove whole parts of a denoiser or text encoder, or make what is inside its modules narrower."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from sdcompress.backends.component import Component
from sdcompress.errors import Problem, ProblemList, UserError
from sdcompress.files.manifest import LayerStatus
from sdcompress.planning.steps import LayerOutcome, Planned, Share, Stage, Step
from sdcompress.pruning.blocks import is_transformer, without_blocks
from sdcompress.pruning.importance import choose, cut_tensor, score
from sdcompress.pruning.smaller import Smaller, unchanged
from sdcompress.pruning.stock import (
    is_text_encoder,
    is_unet,
    with_layers_per_block,
    with_text_layers,
    with_transformer_depth,
    without_innermost_stage,
    without_mid_block,
)
from sdcompress.pruning.units import is_whole_mid_block, matching_units, without_units
from sdcompress.pruning.widths import Cut, Group, narrowed, width_groups
from sdcompress.sources.pruned_config import Pruning, marked, pruning_of
from sdcompress.sources.spec import ComponentSpec

if TYPE_CHECKING:
    import torch

    from sdcompress.backends.component import MeasuringContext

# BK-SDM (Kim et al. 2023, arXiv:2305.15798, section 3.1) as the fields that make it.
PATTERNS: Mapping[str, Mapping[str, Any]] = {
    "bk-sdm-base": {"layers_per_block": 1},
    "bk-sdm-small": {"layers_per_block": 1, "drop_mid_block": True},
    "bk-sdm-tiny": {"layers_per_block": 1, "drop_mid_block": True, "drop_innermost_stage": True},
}
# Kind of a group -> what the module is called, and what of it is kept.
_WORDS = {
    "heads": ("attention", "heads"),
    "feed_forward": ("feed-forward", "inner features"),
    "resnet_channels": ("resnet", "inner channels"),
}
_OF_UNETS = ("drop_mid_block", "layers_per_block", "drop_innermost_stage", "transformer_depth", "remove", "auto")
_OF_TRANSFORMERS = frozenset({"remove", "auto", "importance"})


class Prune(Step):
    """Remove parts of a denoiser or text encoder, or make them narrower, without training.

    Stock configs can say `pattern`, `drop_mid_block`, `layers_per_block`, `drop_innermost_stage`, `transformer_depth`,
    `text_layers` and blocks of transformers, so stock loaders open the result; the rest is in a format of sdcompress.

    Examples:
        prune: {pattern: bk-sdm-small}
    """

    kind = "prune"
    stage = Stage.PRUNE
    pattern: Literal["bk-sdm-base", "bk-sdm-small", "bk-sdm-tiny"] | None = Field(
        default=None, description="the blocks that BK-SDM removes from a UNet (arXiv:2305.15798)"
    )
    drop_mid_block: bool = Field(default=False, description="remove a UNet's mid block")
    layers_per_block: int | None = Field(default=None, ge=1, description="layers to keep in each block of a UNet")
    drop_innermost_stage: bool = Field(default=False, description="remove a UNet's last down and first up block")
    transformer_depth: int | None = Field(
        default=None, ge=1, description="transformer blocks to keep in each attention of a UNet"
    )
    text_layers: int | None = Field(default=None, ge=1, description="layers to keep of a text encoder")
    remove: tuple[str, ...] = Field(
        default=(), description="patterns of parts: resnets, attentions, transformer_blocks; of transformers, blocks"
    )
    auto: Share | None = Field(
        default=None,
        description="share of a denoiser's parameters to remove in such parts: those whose absence is measured to "
        "matter least",
    )
    heads: Share | None = Field(default=None, description="share of each attention's heads to keep")
    feed_forward: Share | None = Field(default=None, description="share of each feed-forward's features to keep")
    resnet_channels: Share | None = Field(default=None, description="share of each resnet's channels to keep")
    importance: Literal["magnitude", "activation"] = Field(
        default="magnitude",
        description="which heads, features and channels are kept: those of largest weights, or of largest activations "
        "(calibrated)",
    )

    @property
    def measures(self) -> bool:
        return self.auto is not None

    def measured(self, context: MeasuringContext) -> Prune:
        """Return the step with `remove` in the place of `auto`, measured on the original's weights."""
        if self.auto is None:
            return self
        from sdcompress.planning.automatic_pruning import least_important

        if others := sorted(self._given() - {"auto"}):
            what = f"what it measures is the whole denoiser; put {', '.join(others)} into a step after it"
            raise UserError(Problem("auto", what))
        return Prune(remove=least_important(context, self.auto))

    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        pruned = self._prune(spec)
        outcomes = [
            LayerOutcome(name, "block", count, LayerStatus.REMOVED, reason="removed")
            for name, count in pruned.smaller.removed.items()
        ]
        outcomes += [_narrowed_outcome(group, pruned.smaller.spec) for group in pruned.groups]
        calibrated: tuple[str, ...] = ()
        if self.importance == "activation":
            names = (pruned.name_before(f"{group.consumer}.weight") for group in pruned.groups)
            calibrated = tuple(name.removesuffix(".weight") for name in names)
        working = max((_working_bytes(group, pruned.smaller.spec) for group in pruned.groups), default=0)
        return Planned(pruned.spec, tuple(outcomes), working_bytes=working, calibrated=calibrated)

    def apply(self, component: Component, planned: Planned) -> Component:
        pruned = self._prune(component.spec)
        cuts: dict[str, list[tuple[Group, Cut]]] = {}
        for group in pruned.groups:
            for cut in group.cuts:
                cuts.setdefault(cut.tensor, []).append((group, cut))
        kept: dict[str, torch.Tensor] = {}

        def read_whole(name: str) -> torch.Tensor:
            return component.read(pruned.name_before(name))

        def read(name: str) -> torch.Tensor:
            tensor = read_whole(name)
            for group, cut in cuts.get(name, ()):
                key = f"{group.module} {group.kind}"
                if key not in kept:
                    scores = score(group, self.importance, read_whole, component.statistics, pruned.name_before)
                    kept[key] = choose(scores, group)
                tensor = cut_tensor(tensor, cut, group, kept[key])
            return tensor

        return component.becomes(planned.spec, read)

    def _given(self) -> set[str]:
        """Return the fields that are not as by default."""
        return {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}

    def _prune(self, spec: ComponentSpec) -> _Pruned:
        """Return the pruned spec and what changes. UserError with all that is wrong."""
        if not is_unet(spec) and not is_text_encoder(spec) and not is_transformer(spec):
            raise UserError(
                f"{spec.name} is a {spec.class_name}; only a UNet2DConditionModel, CLIP text encoders and the "
                f"transformers of SD3, FLUX, PixArt and Sana can be pruned"
            )
        if not self._given() - {"importance"}:
            raise UserError("nothing to prune; set pattern, remove, auto, heads, feed_forward or another field")
        if pruning_of(spec.config):
            raise UserError(f"{spec.name} is pruned already, in ways no stock config can say; start from the original")
        problems = ProblemList()
        smaller = unchanged(spec)
        with problems.collect():
            smaller = self._without_parts(spec)
        with problems.collect():
            units = matching_units(smaller.spec, self.remove)
        problems.raise_any()
        if is_transformer(spec):
            smaller = without_blocks(spec, {unit.name for unit in units})
            return _Pruned(smaller.spec, smaller, ())
        pruning = Pruning()
        if units and is_whole_mid_block(smaller.spec, units):
            smaller = smaller.then(without_mid_block(smaller.spec))
            units = tuple(unit for unit in units if not unit.name.startswith("mid_block."))
        if units:
            smaller = smaller.then(without_units(smaller.spec, units))
            pruning = Pruning(removed=tuple(unit.name for unit in units))
        groups = width_groups(smaller.spec, self.heads, self.feed_forward, self.resnet_channels)
        after = narrowed(smaller.spec, groups)
        if is_unet(spec):  # a text encoder's own config tells the width of its feed-forward
            pruning = Pruning(pruning.removed, {group.module: group.kept for group in groups})
        return _Pruned(marked(after, pruning), smaller, groups)

    def _without_parts(self, spec: ComponentSpec) -> Smaller:
        """Return the component without the parts that a stock config can leave out."""
        problems = ProblemList()
        chosen = {name: getattr(self, name) for name in (*_OF_UNETS, "text_layers")}
        if self.pattern is not None:
            preset = PATTERNS[self.pattern]
            for name in preset:
                if name in self._given():
                    problems.add(name, f"is settled by pattern {self.pattern}; leave one of the two out")
            chosen |= preset
        if self.auto is not None:
            what = "is measured on the original's weights, so it must be the first step, and the model must be a folder"
            problems.add("auto", f"{what} that has them; otherwise use pattern or remove")
        set_fields = [name for name, value in chosen.items() if value]
        unfit = f"does not go with {spec.name}, which is a {spec.class_name}"
        if is_transformer(spec):
            problems += [Problem(name, f"{unfit}; use remove") for name in sorted(self._given() - _OF_TRANSFORMERS)]
            set_fields = []
        elif wrong := [name for name in set_fields if (name == "text_layers") == is_unet(spec)]:
            problems += [Problem(name, unfit) for name in wrong]
            set_fields = []
        smaller = unchanged(spec)
        for name, make in (
            ("layers_per_block", with_layers_per_block),
            ("transformer_depth", with_transformer_depth),
            ("drop_mid_block", lambda spec, _: without_mid_block(spec)),
            ("drop_innermost_stage", lambda spec, _: without_innermost_stage(spec)),
            ("text_layers", with_text_layers),
        ):
            if name in set_fields:
                with problems.collect():
                    smaller = smaller.then(make(smaller.spec, chosen[name]))
        problems.raise_any()
        return smaller


@dataclass(frozen=True)
class _Pruned:
    """A pruned component.

    Args:
        spec: the component after pruning.
        smaller: the component with parts left out, before anything is made narrower.
        groups: the groups of channels that are then made narrower.
    """

    spec: ComponentSpec
    smaller: Smaller
    groups: tuple[Group, ...]

    def name_before(self, tensor: str) -> str:
        """Return the tensor's name before pruning."""
        return self.smaller.origins[tensor]


def _narrowed_outcome(group: Group, spec: ComponentSpec) -> LayerOutcome:
    whole = {cut.tensor: spec.tensors[cut.tensor].parameters for cut in group.cuts}
    lost = sum(count - count * group.kept // group.width for count in whole.values())
    kind, parts = _WORDS[group.kind]
    reason = f"narrowed: {group.kept} of {group.width} {parts} kept"
    return LayerOutcome(group.module, kind, lost, LayerStatus.NARROWED, reason=reason)


def _working_bytes(group: Group, spec: ComponentSpec) -> int:
    """Return the bytes held while a group's importance is found: its largest weight as stored, in float32, squared."""
    largest = max(math.prod(spec.tensors[cut.tensor].shape) for cut in group.cuts)
    return 12 * largest
