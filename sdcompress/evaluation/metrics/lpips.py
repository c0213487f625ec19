"""LPIPS, the distance of deep features (Zhang et al. 2018, arXiv:1801.03924), where its AlexNet is on this disk.

torchmetrics has the weights of its linear layers; AlexNet's come from torchvision, whose download is left to the user.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
SMALLEST_SIDE = 31  # AlexNet's first convolution leaves 7 of them, its two poolings 3 and 1


def why_not() -> str | None:
    """Why LPIPS cannot be measured here, and what to do; None when it can."""
    if importlib.util.find_spec("torchvision") is None:
        return "needs torchvision (pip install 'sdcompress[lpips]') and the weights of its AlexNet"
    import torch

    file = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET_FILE
    if not file.is_file():
        return f"AlexNet's weights are not at {file}; torchvision.models.alexnet(weights='DEFAULT') fetches them"
    return None


class Lpips:
    """LPIPS with AlexNet, opened once."""

    def __init__(self) -> None:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self._model = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)

    def __call__(self, original: np.ndarray, compressed: np.ndarray) -> float | None:
        """The distance (0 = identical) of two uint8 pictures [height, width, 3]; None under SMALLEST_SIDE pixels."""
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
