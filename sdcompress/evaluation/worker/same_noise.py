"""The same noise for two pipelines whatever their dtypes, and a hash that proves it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DRAWS = "randn_tensor"  # the function of diffusers that all of its pipelines, schedulers and autoencoders draw with


class Noise:
    """The noise of one picture. `sha256` is of all of it, in float32; None if none was drawn."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._drawn = False

    @property
    def sha256(self) -> str | None:
        return self._digest.hexdigest() if self._drawn else None

    def add(self, noise: Any) -> None:
        """Add a float32 tensor of noise to the hash."""
        self._drawn = True
        self._digest.update(noise.detach().cpu().contiguous().numpy().tobytes())


@contextmanager
def same_noise(pipeline: Any) -> Iterator[Noise]:
    """Let the pipeline draw all noise in float32, whatever its dtype, while in the context. Yield what it drew.

    The same seed gives other numbers in another dtype, and two pipelines must get the same noise to be compared: as
    initial latents, where few-step samplers add some between steps, and where a picture's latents are sampled.
    """
    import torch

    noise = Noise()
    modules = [sys.modules[name] for name in _modules_that_draw(pipeline)]
    inner = {module: getattr(module, DRAWS) for module in modules}

    def draw(module: Any) -> Any:
        def drawn(shape: Any, *args: Any, **kwargs: Any) -> Any:
            dtype = kwargs.pop("dtype", None)
            result = inner[module](shape, *args, dtype=torch.float32, **kwargs)
            noise.add(result)
            return result if dtype is None else result.to(dtype)

        return drawn

    try:
        for module in modules:
            setattr(module, DRAWS, draw(module))
        yield noise
    finally:
        for module, original in inner.items():
            setattr(module, DRAWS, original)


def _modules_that_draw(pipeline: Any) -> list[str]:
    owners = [type(pipeline), type(getattr(pipeline, "scheduler", None))]
    names = {each.__module__ for owner in owners for each in owner.__mro__}
    names.add("diffusers.models.autoencoders.vae")  # which samples the latents of a picture
    return sorted(name for name in names if hasattr(sys.modules.get(name), DRAWS))
