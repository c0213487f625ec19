"""Pictures that are black, flat or NaN: found, explained, and decoded again in float32 if a float16 VAE is to blame.

float16 holds nothing above 65504. Some VAEs (SDXL's) have larger activations, which become infinite and then NaN, so
that the picture is black though the latents were right.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def to_pixels(image: Any) -> tuple[NDArray[Any], dict[str, bool]]:
    """Return a float picture in 0..1 as 8-bit pixels, where NaN is black, and whether it is flat or not finite."""
    import numpy as np

    finite = bool(np.isfinite(image).all())
    pixels = (np.nan_to_num(image, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255).round().astype(np.uint8)
    return pixels, {"not_finite": not finite, "flat": bool(pixels.min() == pixels.max())}


class DecoderGuard:
    """Replaces a pipeline's decoder by one that checks what it decodes.

    If float16 gives NaN or one flat colour for finite latents, the VAE decodes them again in float32, or in bfloat16 if
    there is no memory for that. It decodes so from then on.

    Attributes:
        upcast: the precision that decoded the last picture in the place of float16; None if none did.
        latents_finite: whether the latents of the last picture were finite; None before the first.
    """

    def __init__(self, pipeline: Any):
        self.upcast: str | None = None
        self.latents_finite: bool | None = None
        self._instead: Any = None  # the dtype to decode in, once float16 has failed
        self._vae = pipeline.components.get("vae")
        if self._vae is not None:
            self._inner = self._vae.decode
            decode = self._decode

            @functools.wraps(self._inner)
            def guarded(z: Any, *args: Any, **kwargs: Any) -> Any:
                return decode(z, *args, **kwargs)

            self._vae.decode = guarded

    @property
    def in_a_graph(self) -> bool:
        """Whether the VAE computes in float16 in an ONNX file, which has no other precision."""
        import torch

        return not self._is_torch() and getattr(self._vae, "dtype", None) == torch.float16

    def _is_torch(self) -> bool:
        return next(iter(self._vae.parameters()), None) is not None

    def _decode(self, z: Any, *args: Any, **kwargs: Any) -> Any:
        import torch

        self.upcast = None
        self.latents_finite = bool(torch.isfinite(z).all())
        in_half = self._is_torch() and self._vae.dtype == torch.float16
        if not in_half:
            return self._inner(z, *args, **kwargs)
        if self._instead is None:
            output = self._inner(z, *args, **kwargs)
            if not self.latents_finite or _shows_something(output[0]):
                return output
        for dtype in (torch.float32, torch.bfloat16) if self._instead is None else (self._instead,):
            try:
                output = self._again(dtype, z, *args, **kwargs)
            except torch.OutOfMemoryError:
                if dtype != torch.float32:
                    raise
                torch.cuda.empty_cache()
                continue
            self._instead, self.upcast = dtype, str(dtype).removeprefix("torch.")
            break
        return output

    def _again(self, dtype: Any, z: Any, *args: Any, **kwargs: Any) -> Any:
        import torch

        try:
            self._vae.to(dtype)
            return self._inner(z.to(dtype), *args, **kwargs)
        finally:
            self._vae.to(torch.float16)  # as the pipeline opened it: it encodes, and its latents come, in that


def why_black(seen: dict[str, bool], blocked: bool, guard: DecoderGuard) -> str | None:
    """Return what is wrong with a picture and what to do; None if it shows something."""
    if not (seen["flat"] or seen["not_finite"]):
        return None
    what = "the picture has NaN or infinite pixels" if seen["not_finite"] else "the picture is one flat colour"
    if blocked:
        return "the picture is black: the safety checker blocked it; try another --seed or another prompt"
    if guard.latents_finite is False:
        return (
            f"{what}: its latents are not finite, so the denoiser (or the VAE's encoder) overflowed; use --dtype "
            f"bfloat16 or float32, or compress again with a recipe that casts to one of them"
        )
    if guard.in_a_graph:
        return (
            f"{what}: its latents are finite, and the VAE's ONNX graph computes in float16; compress again with "
            f"`vae: [{{cast: {{dtype: float32}}}}]` in the recipe"
        )
    return (
        f"{what}, though its latents are finite; try another --seed and more --steps, and see with `sdcompress "
        f"evaluate ORIGINAL MODEL --attribute` which component is to blame"
    )


def _shows_something(sample: Any) -> bool:
    import torch

    return bool(torch.isfinite(sample).all()) and bool(sample.min() != sample.max())
