"""sparsify: set single weights to zero. Files do not get smaller, and steps do not get faster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sdcompress.backends.component import Component
from sdcompress.calibration.observed_layers import can_be_calibrated
from sdcompress.errors import ProblemList
from sdcompress.families.registry import architecture_of
from sdcompress.files.manifest import LayerStatus
from sdcompress.planning.layer_formats import Patterns, unmatched_patterns
from sdcompress.planning.steps import LayerOutcome, Planned, Share, Stage, Step
from sdcompress.pruning.sparsity import GROUP, kept_2_4, kept_share, scores
from sdcompress.sources.layer_patterns import first_match
from sdcompress.sources.spec import CONVOLUTIONS, ComponentSpec, Layer, layers_of

if TYPE_CHECKING:
    import torch


class Sparsify(Step):
    """Set weights of linear layers and convolutions to zero.

    Weights are stored as before, zeros included: nothing gets smaller or faster until something makes use of the zeros.

    Examples:
        sparsify: {sparsity: 50%}
    """

    kind = "sparsify"
    stage = Stage.PRUNE
    sparsity: Share | None = Field(default=None, description="share of each layer's weights, such as 50%")
    pattern: Literal["2:4"] | None = Field(default=None, description="instead: two of every four input channels")
    method: Literal["magnitude", "wanda"] = Field(
        default="magnitude",
        description="which weights: magnitude takes the least |W| of the layer, wanda the least |W| * ||x|| of each "
        "output channel (arXiv:2306.11695, calibrated)",
    )
    include: Patterns = Field(default=("*",), description="patterns of the layers, as in quantize")
    exclude: Patterns = Field(default=(), description="patterns of layers to keep as they are")
    keep_sensitive: bool = Field(default=True, description="keep sensitive layers")

    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        layers = [layer for layer in layers_of(spec) if layer.kind in {"linear"} | CONVOLUTIONS]
        names = [layer.name for layer in layers]
        problems = ProblemList(unmatched_patterns("include", self.include, names, spec))
        problems += unmatched_patterns("exclude", self.exclude, names, spec)
        if (self.sparsity is None) == (self.pattern is None):
            problems.add("sparsity", 'give either this or pattern: "2:4"')
        if self.method == "wanda" and not can_be_calibrated(spec):
            what = f"nothing can be calibrated for {spec.name} ({spec.class_name})"
            problems.add("method", f"{what}; use method: magnitude")
        reasons = {layer.name: self._spared(layer, spec) for layer in layers}
        sparse = tuple(name for name, reason in reasons.items() if not reason)
        if not problems and not sparse:
            problems.add("include", f"leaves no layer of {spec.name}; {'; '.join(sorted(set(reasons.values())))}")
        problems.raise_any()
        what = self.pattern or f"{self.sparsity:.0%}"
        outcomes = tuple(
            LayerOutcome(
                layer.name,
                layer.kind,
                layer.parameters,
                LayerStatus.KEPT if reasons[layer.name] else LayerStatus.SPARSE,
                reason=reasons[layer.name] or f"sparse: {what} by {self.method}",
            )
            for layer in layers
        )
        notes = (f"zeros in the weights of {len(sparse)} layers ({what}); neither smaller nor faster by itself",)
        largest = max(spec.tensors[f"{name}.weight"].parameters for name in sparse)
        return Planned(
            spec, outcomes, notes, working_bytes=24 * largest, calibrated=sparse if self.method == "wanda" else ()
        )

    def apply(self, component: Component, planned: Planned) -> Component:
        sparse = {f"{one.layer}.weight": one.layer for one in planned.layers if one.status is LayerStatus.SPARSE}
        wanda = self.method == "wanda"

        def read(name: str) -> torch.Tensor:
            tensor = component.read(name)
            if name not in sparse:
                return tensor
            layer = sparse[name]
            score = scores(tensor, component.statistics[layer] if wanda else None)
            kept = kept_2_4(score) if self.sparsity is None else kept_share(score, self.sparsity, by_row=wanda)
            result = tensor * kept
            component.results.sparsity[layer] = 1 - int(result.count_nonzero()) / result.numel()
            return result

        return component.becomes(planned.spec, read)

    def _spared(self, layer: Layer, spec: ComponentSpec) -> str:
        """Return why the layer keeps its weights; "" where it does not."""
        if pattern := first_match(self.exclude, layer.name):
            return f"excluded by {pattern}"
        if not first_match(self.include, layer.name):
            return "matches no include pattern"
        sensitive = architecture_of(spec.class_name).sensitive if self.keep_sensitive else ()
        if pattern := first_match(sensitive, layer.name):
            return f"sensitive layer {pattern} (keep_sensitive)"
        if self.pattern is not None and layer.shape[1] % GROUP:
            return f"its {layer.shape[1]} input channels are no multiple of {GROUP}"
        return ""
