"""sparsify: zeros in the place of single weights. The file stays as large and the step as slow; the report says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from sdcompress.backends.component import Component
from sdcompress.calibration.observed_layers import can_be_calibrated
from sdcompress.errors import UserError
from sdcompress.families.sensitive import sensitive_patterns
from sdcompress.planning.layer_formats import unmatched_patterns
from sdcompress.planning.shares import parse_share
from sdcompress.planning.steps import LayerOutcome, Planned, Record, Stage, Step
from sdcompress.pruning.sparsity import GROUP, kept_2_4, kept_share, scores
from sdcompress.sources.layer_patterns import first_match
from sdcompress.sources.spec import CONVOLUTIONS, ComponentSpec, Layer, layers_of

if TYPE_CHECKING:
    import torch


class Sparsify(Step):
    """`sparsify: {sparsity: 50%}` or `{pattern: "2:4"}`: that share of each layer's weights, or two of every four
    input channels', become zero.

    method: magnitude (least |W| of the layer) or wanda (least |W| * ||x|| of each output channel, arXiv:2306.11695;
    calibrated). Linear layers and convolutions; include and exclude are patterns as in `quantize`. Weights are stored
    as they were, zeros and all: nothing gets smaller or faster until something reads them that makes use of zeros.
    """

    kind = "sparsify"
    stage = Stage.PRUNE
    sparsity: float | None = Field(default=None, gt=0, lt=1)
    pattern: Literal["2:4"] | None = None
    method: Literal["magnitude", "wanda"] = "magnitude"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    keep_sensitive: bool = True

    @field_validator("sparsity", mode="before")
    @classmethod
    def _percent(cls, value: Any) -> Any:
        return parse_share(value)

    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        layers = [layer for layer in layers_of(spec) if layer.kind in {"linear"} | CONVOLUTIONS]
        names = [layer.name for layer in layers]
        problems = unmatched_patterns("include", self.include, names, spec)
        problems += unmatched_patterns("exclude", self.exclude, names, spec)
        if (self.sparsity is None) == (self.pattern is None):
            problems.append('sparsity: give either this or pattern: "2:4"')
        if self.method == "wanda" and not can_be_calibrated(spec):
            problems.append(
                f"method: nothing can be calibrated for {spec.name} ({spec.class_name}); use method: magnitude"
            )
        reasons = {layer.name: self._spared(layer, spec) for layer in layers}
        sparse = tuple(name for name, reason in reasons.items() if not reason)
        if not problems and not sparse:
            problems.append(f"include: leaves no layer of {spec.name}; {'; '.join(sorted(set(reasons.values())))}")
        if problems:
            raise UserError(problems)
        what = self.pattern or f"{self.sparsity:.0%}"
        outcomes = tuple(
            LayerOutcome(layer.name, layer.kind, layer.parameters, None,
                         reasons[layer.name] or f"sparse: {what} by {self.method}")
            for layer in layers
        )  # fmt: skip
        notes = (f"zeros in the weights of {len(sparse)} layers ({what}); neither smaller nor faster by itself",)
        largest = max(spec.tensors[f"{name}.weight"].parameters for name in sparse)
        return Planned(
            spec, outcomes, notes, working_bytes=24 * largest, calibrated=sparse if self.method == "wanda" else ()
        )

    def apply(self, part: Component, planned: Planned, record: Record) -> Component:
        sparse = {f"{one.layer}.weight": one.layer for one in planned.layers if one.reason.startswith("sparse")}

        def read(name: str) -> torch.Tensor:
            tensor = part.read(name)
            if name not in sparse:
                return tensor
            layer = sparse[name]
            score = scores(tensor, part.statistics[layer] if self.method == "wanda" else None)
            if self.pattern is not None:
                kept = kept_2_4(score)
            else:
                assert self.sparsity is not None
                kept = kept_share(score, self.sparsity, by_row=self.method == "wanda")
            result = tensor * kept
            record.sparsity[layer] = 1 - int(result.count_nonzero()) / result.numel()
            return result

        return part.becomes(planned.spec, read)

    def _spared(self, layer: Layer, spec: ComponentSpec) -> str:
        """Why the layer keeps its weights; "" if it does not."""
        if pattern := first_match(self.exclude, layer.name):
            return f"excluded by {pattern}"
        if not first_match(self.include, layer.name):
            return "matches no include pattern"
        sensitive = sensitive_patterns(spec.class_name) if self.keep_sensitive else ()
        if pattern := first_match(sensitive, layer.name):
            return f"sensitive layer {pattern} (keep_sensitive)"
        if self.pattern is not None and layer.shape[1] % GROUP:
            return f"its {layer.shape[1]} input channels are no multiple of {GROUP}"
        return ""
