"""FID: the distance of two sets of pictures in Inception's features, where its weights are on this disk.

Source: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule" (arXiv:1706.08500), equation 6: the Fréchet
distance of two Gaussians fitted to the 2048 features of InceptionV3. The network is torch-fidelity's, whose weights and
resizing are TensorFlow's, so the figures are those of the literature. torchmetrics computes the distance.

A set smaller than its features leaves their covariance singular, and the distance of two small sets of one kind is far
from 0. So below ENOUGH pictures the figure is marked as unreliable; one of the smaller layers (64, 192, 768 features)
would not be FID. It then says something only beside the floor, over equally many pictures.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.errors import EvaluationError

if TYPE_CHECKING:
    import numpy as np

WEIGHTS_FILE = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS_FILE}"
FEATURES = 2048
ENOUGH = FEATURES  # pictures


def why_not() -> str | None:
    """Return why FID cannot be measured here, and what to do; None when it can. Nothing is ever downloaded."""
    if any(importlib.util.find_spec(package) is None for package in ("torch_fidelity", "torchvision")):
        return "needs torch-fidelity (pip install 'sdcompress[fid]') and the weights of its InceptionV3"
    file = _weights_file()
    if not file.is_file():
        return f"InceptionV3's weights are not at {file}; get them from {WEIGHTS_URL}"
    return None


class Inception:
    """InceptionV3. Raises EvaluationError if its weights cannot be read."""

    def __init__(self) -> None:
        import pickle

        import torch
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        file = _weights_file()
        try:
            torch.load(file, map_location="cpu", weights_only=True)  # the library's own loading runs what a file holds
            self._model = FeatureExtractorInceptionV3("inception", [str(FEATURES)], str(file))
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise EvaluationError(
                f"{file}: cannot be read as the weights of InceptionV3 ({str(error).splitlines()[0]}); get it again "
                f"from {WEIGHTS_URL}, or remove it to leave FID out"
            ) from error

    def features(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Return the features [pictures, 2048], float32, of uint8 pictures [height, width, 3]."""
        import numpy as np
        import torch

        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # [pictures, 3, height, width]
        with torch.inference_mode():
            features: np.ndarray = self._model(pixels)[0].numpy()
        return features


def fid(original: np.ndarray, compressed: np.ndarray) -> float:
    """Return the distance of two sets of pictures.

    Args:
        original: features, [pictures, features], of two pictures or more.
        compressed: the same of the other set.

    Returns:
        0 or more, where 0 is the same set.

    Examples:
        >>> import numpy as np
        >>> features = np.random.default_rng(0).normal(size=(50, 4))
        >>> round(fid(features, features + 3), 3)  # equal covariances: the squared distance of the means
        36.0
    """
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    distance = FrechetInceptionDistance(feature=_as_given(original.shape[1]))
    for features, real in ((original, True), (compressed, False)):
        distance.update(torch.from_numpy(features.astype("float64")), real=real)
    return max(0.0, float(distance.compute()))  # rounding may leave less than 0 for the same set


def _as_given(width: int) -> Any:
    """Return what torchmetrics takes in the place of its own network: features go in and come out."""
    import torch

    module = torch.nn.Identity()
    module.num_features = width  # type: ignore[assignment]
    return module


def _weights_file() -> Path:
    """Return where torch hub keeps the weights; the variable TORCH_HOME names another place."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_FILE
