"""The same initial latents for two pipelines whatever their dtypes, and proof of it."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from typing import Any


def keep_latents(pipeline: Any, remember: Callable[[str], None]) -> None:
    """Makes the pipeline draw its initial latents in float32 whatever its dtype, and tells their SHA-256.

    The same seed gives other numbers in another dtype, and two pipelines compared must start from the same noise.
    """
    inner = getattr(pipeline, "prepare_latents", None)
    if inner is None:
        return
    signature = inspect.signature(inner)

    @functools.wraps(inner)
    def prepare(*args: Any, **kwargs: Any) -> Any:
        import torch

        bound = signature.bind(*args, **kwargs)
        dtype = bound.arguments.get("dtype")
        if dtype is not None:
            bound.arguments["dtype"] = torch.float32
        result = inner(*bound.args, **bound.kwargs)
        latents = result[0] if isinstance(result, tuple) else result
        remember(hashlib.sha256(latents.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest())
        if dtype is None:
            return result
        return (latents.to(dtype), *result[1:]) if isinstance(result, tuple) else latents.to(dtype)

    pipeline.prepare_latents = prepare
