"""prune: leave out whole parts of a denoiser or text encoder, or make what is inside its modules narrower."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from sdcompress.backends.component import Component
from sdcompress.errors import UserError
from sdcompress.planning.shares import parse_share
from sdcompress.planning.steps import LayerOutcome, Planned, Record, Stage, Step
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

    from sdcompress.planning.steps import Origin

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
    """`prune: {pattern: bk-sdm-small}`: fewer parameters, in shapes that run as fast as their size says.

    pattern, drop_mid_block, layers_per_block, drop_innermost_stage, transformer_depth and text_layers are what a stock
    config can say. remove: patterns of single resnets, attentions and transformer_blocks of a UNet, of whole blocks of
    a transformer, which a stock config can say as well; auto: the share of the component's parameters to take out in
    such parts, those whose absence was measured to matter least. heads, feed_forward
    and resnet_channels: the share that is kept of each module's, the most important ones by `importance`: magnitude of
    weights, or activation (calibrated). Nothing is retrained.
    """

    kind = "prune"
    stage = Stage.PRUNE
    pattern: Literal["bk-sdm-base", "bk-sdm-small", "bk-sdm-tiny"] | None = None
    drop_mid_block: bool = False
    layers_per_block: int | None = Field(default=None, ge=1)
    drop_innermost_stage: bool = False
    transformer_depth: int | None = Field(default=None, ge=1)
    text_layers: int | None = Field(default=None, ge=1)
    remove: tuple[str, ...] = ()
    auto: float | None = Field(default=None, gt=0, lt=1)
    heads: float | None = Field(default=None, gt=0, lt=1)
    feed_forward: float | None = Field(default=None, gt=0, lt=1)
    resnet_channels: float | None = Field(default=None, gt=0, lt=1)
    importance: Literal["magnitude", "activation"] = "magnitude"

    @field_validator("auto", "heads", "feed_forward", "resnet_channels", mode="before")
    @classmethod
    def _percent(cls, value: Any) -> Any:
        return parse_share(value)

    @property
    def measures(self) -> bool:
        return self.auto is not None

    def measured(self, origin: Origin) -> Prune:
        """The step with `remove` in the place of `auto`, whose parts are measured on the origin's weights."""
        if self.auto is None:
            return self
        from sdcompress.planning.automatic_pruning import least_important

        if others := sorted(self._given() - {"auto"}):
            raise UserError(
                f"auto: what it measures is the whole denoiser; put {', '.join(others)} into a step after it"
            )
        return Prune(remove=least_important(origin, self.auto))

    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        work = self._work(spec)
        outcomes = [LayerOutcome(name, "block", count, None, "removed") for name, count in work.smaller.removed.items()]
        outcomes += [_narrowed_outcome(group, work.smaller.spec) for group in work.groups]
        calibrated: tuple[str, ...] = ()
        if self.importance == "activation":
            calibrated = tuple(work.origin(f"{group.consumer}.weight").removesuffix(".weight") for group in work.groups)
        working = max((_group_bytes(group, work.smaller.spec) for group in work.groups), default=0)
        return Planned(work.spec, tuple(outcomes), working_bytes=working, calibrated=calibrated)

    def apply(self, part: Component, planned: Planned, record: Record) -> Component:
        work = self._work(part.spec)
        cuts: dict[str, list[tuple[Group, Cut]]] = {}
        for group in work.groups:
            for cut in group.cuts:
                cuts.setdefault(cut.tensor, []).append((group, cut))
        kept: dict[str, torch.Tensor] = {}

        def read_whole(name: str) -> torch.Tensor:
            return part.read(work.origin(name))

        def read(name: str) -> torch.Tensor:
            tensor = read_whole(name)
            for group, cut in cuts.get(name, ()):
                key = f"{group.module} {group.kind}"
                if key not in kept:
                    kept[key] = choose(score(group, self.importance, read_whole, part.statistics, work.origin), group)
                tensor = cut_tensor(tensor, cut, group, kept[key])
            return tensor

        return part.becomes(planned.spec, read)

    def _given(self) -> set[str]:
        """The fields that say something."""
        return {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}

    def _work(self, spec: ComponentSpec) -> _Work:
        """What there is to do. UserError with all that is wrong."""
        if not is_unet(spec) and not is_text_encoder(spec) and not is_transformer(spec):
            raise UserError(
                f"{spec.name} is a {spec.class_name}; only a UNet2DConditionModel, CLIP text encoders and the "
                f"transformers of SD3, FLUX, PixArt and Sana can be pruned"
            )
        if not self._given() - {"importance"}:
            raise UserError("nothing to prune; set pattern, remove, auto, heads, feed_forward or another field")
        if pruning_of(spec.config):
            raise UserError(f"{spec.name} is pruned already, in ways no stock config can say; start from the original")
        problems: list[str] = []
        smaller = self._without_parts(spec, problems)
        units = matching_units(smaller.spec, self.remove, problems)
        if problems:
            raise UserError(problems)
        if is_transformer(spec):
            smaller = without_blocks(spec, {unit.name for unit in units})
            return _Work(smaller.spec, smaller, ())
        pruning = Pruning()
        if units and is_whole_mid_block(smaller.spec, units):
            smaller = smaller.then(without_mid_block(smaller.spec))
            units = tuple(unit for unit in units if not unit.name.startswith("mid_block."))
        if units:
            smaller = smaller.then(without_units(smaller.spec, units))
            pruning = Pruning(removed=tuple(unit.name for unit in units))
        groups = width_groups(smaller.spec, self.heads, self.feed_forward, self.resnet_channels)
        after = narrowed(smaller.spec, groups)
        if is_unet(spec):  # of a text encoder's feed-forward the stock config tells
            pruning = Pruning(pruning.removed, {group.module: group.kept for group in groups})
        return _Work(marked(after, pruning), smaller, groups)

    def _without_parts(self, spec: ComponentSpec, problems: list[str]) -> Smaller:
        """What a stock config can say, done; what is wrong goes into `problems`."""
        chosen = {name: getattr(self, name) for name in (*_OF_UNETS, "text_layers")}
        if self.pattern is not None:
            preset = PATTERNS[self.pattern]
            problems += [
                f"{name}: is settled by pattern {self.pattern}; leave one of the two out"
                for name in preset
                if name in self._given()
            ]
            chosen |= preset
        if self.auto is not None:
            problems.append(
                "auto: is measured on the original's weights, so it must be the first step, and the model must be a "
                "folder that has them; else use pattern or remove"
            )
        if is_transformer(spec):
            others = sorted(self._given() - _OF_TRANSFORMERS)
            problems += [
                f"{name}: does not go with {spec.name}, which is a {spec.class_name}; use remove" for name in others
            ]
            return unchanged(spec)
        set_fields = [name for name, value in chosen.items() if value]
        wrong = [name for name in set_fields if (name == "text_layers") == is_unet(spec)]
        if wrong:
            problems += [f"{name}: does not go with {spec.name}, which is a {spec.class_name}" for name in wrong]
            return unchanged(spec)
        smaller = unchanged(spec)
        for name, make in (
            ("layers_per_block", with_layers_per_block),
            ("transformer_depth", with_transformer_depth),
            ("drop_mid_block", lambda spec, _: without_mid_block(spec)),
            ("drop_innermost_stage", lambda spec, _: without_innermost_stage(spec)),
            ("text_layers", with_text_layers),
        ):
            if name in set_fields:
                try:
                    smaller = smaller.then(make(smaller.spec, chosen[name]))
                except UserError as error:
                    problems += error.problems
        return smaller


@dataclass(frozen=True)
class _Work:
    """The spec afterwards; the one with parts left out, and the groups that are then made narrower."""

    spec: ComponentSpec
    smaller: Smaller
    groups: tuple[Group, ...]

    def origin(self, tensor: str) -> str:
        """The tensor's name before the step."""
        return self.smaller.origins[tensor]


def _narrowed_outcome(group: Group, spec: ComponentSpec) -> LayerOutcome:
    whole = {cut.tensor: spec.tensors[cut.tensor].parameters for cut in group.cuts}
    lost = sum(count - count * group.kept // group.width for count in whole.values())
    kind, parts = _WORDS[group.kind]
    return LayerOutcome(group.module, kind, lost, None, f"narrowed: {group.kept} of {group.width} {parts} kept")


def _group_bytes(group: Group, spec: ComponentSpec) -> int:
    """Bytes held while a group's importance is found: its largest weight as stored, in float32 and squared."""
    largest = max(math.prod(spec.tensors[cut.tensor].shape) for cut in group.cuts)
    return 12 * largest
