"""Which components' activations can be watched while pictures are drawn, and what of each layer is watched."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sdcompress.calibration.settings import Watch
from sdcompress.families.registry import known_architectures
from sdcompress.sources.spec import CONVOLUTIONS, ComponentSpec, layers_of


def can_be_calibrated(spec: ComponentSpec) -> bool:
    """Whether the component's layers can be watched while its pipeline draws."""
    known = known_architectures().get(spec.class_name)
    return known is not None and known.calibrated


def watches(spec: ComponentSpec, layers: Iterable[str]) -> dict[str, Watch]:
    """Layer -> what to watch: inputs always, outputs of convolutions, and the first token apart where text is read."""
    kinds = {layer.name: layer.kind for layer in layers_of(spec)}
    text = known_architectures()[spec.class_name].reads_text
    return {
        layer: Watch(
            first_token=text is not None and re.search(text, layer) is not None, output=kinds[layer] in CONVOLUTIONS
        )
        for layer in layers
    }
