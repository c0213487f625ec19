"""FID: how far two sets of pictures lie apart in Inception's features, where its weights are on this disk.

The Fréchet distance of two Gaussians (Heusel et al. 2017, arXiv:1706.08500, equation 6) fitted to the 2048 features of
InceptionV3 as torch-fidelity has it, whose weights and resizing are TensorFlow's: the figures are those of the
literature. torchmetrics computes the distance.

A set smaller than its features leaves their covariance singular, and the distance of two small sets of the same
pictures' kind is far from 0. So below ENOUGH pictures the figure is marked as unreliable; one of the smaller layers
(64, 192, 768 features) would not be FID. It then says something only beside the floor, over equally many pictures.
"""

from __future__ import annotations

import importlib.util
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
    """Why FID cannot be measured here, and what to do; None when it can. Nothing is ever downloaded."""
    if any(importlib.util.find_spec(package) is None for package in ("torch_fidelity", "torchvision")):
        return "needs torch-fidelity (pip install 'sdcompress[fid]') and the weights of its InceptionV3"
    file = _weights_file()
    if not file.is_file():
        return f"InceptionV3's weights are not at {file}; get them from {WEIGHTS_URL}"
    return None


class Inception:
    """InceptionV3, opened once, giving a picture's features."""

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

    def features(self, picture: np.ndarray) -> np.ndarray:
        """The features [2048] of a uint8 picture [height, width, 3], float32."""
        import torch

        pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]  # [1, 3, height, width]
        with torch.inference_mode():
            features: np.ndarray = self._model(pixels)[0][0].numpy()
        return features


def fid(original: np.ndarray, compressed: np.ndarray) -> float:
    """The distance (0 = the same) of two sets of features [pictures, features]; each needs two pictures or more."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    distance = FrechetInceptionDistance(feature=_as_given(original.shape[1]))
    for features, real in ((original, True), (compressed, False)):
        distance.update(torch.from_numpy(features.astype("float64")), real=real)
    return max(0.0, float(distance.compute()))  # rounding may leave less than 0 for the same set


def _as_given(width: int) -> Any:
    """What torchmetrics takes in place of its own network: features go in and come out."""
    import torch

    module = torch.nn.Identity()
    module.num_features = width  # type: ignore[assignment]
    return module


def _weights_file() -> Path:
    """Where torch hub keeps the weights; the variable TORCH_HOME names another place."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_FILE
