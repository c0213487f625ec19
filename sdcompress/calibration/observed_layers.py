"""Which components can be calibrated, and which histograms of their layers are wanted."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sdcompress.calibration.settings import WantedHistograms
from sdcompress.families.registry import architecture_of
from sdcompress.sources.spec import CONVOLUTIONS, ComponentSpec, layers_of


def can_be_calibrated(spec: ComponentSpec) -> bool:
    """Return whether the component's layers can be observed while its pipeline draws."""
    return architecture_of(spec.class_name).calibrated


def histograms_wanted(spec: ComponentSpec, layers: Iterable[str]) -> dict[str, WantedHistograms]:
    """Return layer -> wanted histograms: outputs of convolutions, and the first token apart where text is read."""
    kinds = {layer.name: layer.kind for layer in layers_of(spec)}
    text = architecture_of(spec.class_name).reads_text
    return {
        layer: WantedHistograms(
            first_token=text is not None and re.search(text, layer) is not None, output=kinds[layer] in CONVOLUTIONS
        )
        for layer in layers
    }
