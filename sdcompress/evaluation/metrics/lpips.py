"""LPIPS, the distance of two pictures in AlexNet's features, where its weights are on this disk.

Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (arXiv:1801.03924).
torchmetrics has the weights of its linear layers; AlexNet's come from torchvision, whose download is left to the user.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from sdcompress.evaluation.metrics.registry import PairMetric

if TYPE_CHECKING:
    import numpy as np

ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
SMALLEST_SIDE = 31  # AlexNet's first convolution leaves 7 of them, its two poolings 3 and 1


def why_not() -> str | None:
    """Return why LPIPS cannot be measured here, and what to do; None when it can."""
    if importlib.util.find_spec("torchvision") is None:
        return "needs torchvision (pip install 'sdcompress[lpips]') and the weights of its AlexNet"
    import torch

    file = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET_FILE
    if not file.is_file():
        return f"AlexNet's weights are not at {file}; torchvision.models.alexnet(weights='DEFAULT') fetches them"
    return None


class Lpips:
    """LPIPS with AlexNet."""

    def __init__(self) -> None:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self._model = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)

    def __call__(self, original: np.ndarray, compressed: np.ndarray) -> float | None:
        """Return the distance of two pictures.

        Args:
            original: uint8, [height, width, 3].
            compressed: the same.

        Returns:
            0 or more, where 0 is identical; None for a side under SMALLEST_SIDE pixels.
        """
        import torch

        if min(original.shape[:2]) < SMALLEST_SIDE:
            return None
        first, second = (
            torch.from_numpy(picture.astype("float32") / 255).permute(2, 0, 1)[None]
            for picture in (original, compressed)
        )
        with torch.inference_mode():
            self._model.reset()
            return float(self._model(second, first))


METRIC = PairMetric("lpips", "LPIPS", "1", False, 3, open=Lpips, why_not=why_not)
