"""Which components' activations can be watched while pictures are drawn, and what of each layer is watched."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sdcompress.calibration import Watch
from sdcompress.spec import CONVOLUTIONS, ComponentSpec, layers_of

TEXT_ENCODERS = frozenset({"CLIPTextModel", "CLIPTextModelWithProjection"})
CALIBRATED = TEXT_ENCODERS | {"UNet2DConditionModel", "AutoencoderKL"}

# Layers that read text tokens, whose first, the start of text, is an outlier (MixDQ, arXiv:2405.17873, section 3.2).
_READS_TEXT = re.compile(r"\.attn2\.(to_k|to_v)$")
_TOKEN_LAYERS = re.compile(r"(^|\.)encoder\.layers\.\d+\.")


def watches(spec: ComponentSpec, layers: Iterable[str]) -> dict[str, Watch]:
    """Layer -> what to watch: inputs always, outputs of convolutions, and the first token apart where text is read."""
    kinds = {layer.name: layer.kind for layer in layers_of(spec)}
    text = _TOKEN_LAYERS if spec.class_name in TEXT_ENCODERS else _READS_TEXT
    return {
        layer: Watch(first_token=text.search(layer) is not None, output=kinds[layer] in CONVOLUTIONS)
        for layer in layers
    }
