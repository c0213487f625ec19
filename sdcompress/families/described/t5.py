"""T5's encoder, a text encoder of Stable Diffusion 3, FLUX and PixArt."""

from __future__ import annotations

from sdcompress.families.architecture import Architecture, FoldRule, OnnxInput, OnnxPart
from sdcompress.sources.spec import ComponentSpec

_ATTENTION, _FEED_FORWARD = "layer.0.SelfAttention", "layer.1.DenseReluDense"
_FOLDS = (
    FoldRule("layer.0.layer_norm", (f"{_ATTENTION}.q", f"{_ATTENTION}.k", f"{_ATTENTION}.v")),
    FoldRule(f"{_ATTENTION}.v", (f"{_ATTENTION}.o",)),
    FoldRule("layer.1.layer_norm", (f"{_FEED_FORWARD}.wi_0", f"{_FEED_FORWARD}.wi_1")),
    FoldRule("layer.1.layer_norm", (f"{_FEED_FORWARD}.wi",)),
    FoldRule(f"{_FEED_FORWARD}.wi_1", (f"{_FEED_FORWARD}.wo",)),  # a nonlinearity follows wi_0
)
_UNMASKED = ("StableDiffusion3", "Flux")  # pipelines that give it no mask of the padding


def _parts(spec: ComponentSpec, pipeline_class: str) -> tuple[OnnxPart, ...]:
    inputs = [OnnxInput("input_ids", ("batch", "sequence"), "int64")]
    if not pipeline_class.startswith(_UNMASKED):
        inputs.append(OnnxInput("attention_mask", ("batch", "sequence"), "int64"))
    return (OnnxPart(spec.name, spec.name, "text_encoder", tuple(inputs), ("last_hidden_state",)),)


ARCHITECTURES = (Architecture("T5EncoderModel", "text encoder", folds=_FOLDS, onnx_parts=_parts, calibrated=True),)
