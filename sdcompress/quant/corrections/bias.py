"""Bias correction: the bias takes back the mean error of a quantized layer's output.

Data-Free Quantization (Nagel et al. 2019, arXiv:1906.04721), section 4.2: E[W x] - E[W' x] = (W - W') E[x]. It costs no
byte where the layer has a bias. A convolution's mean has a value for each column of its patches; those that reach
into the padding count with its zeros, so the mean over all positions is right, and that at the borders is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PIECE = 2**22  # weights held in float32 at once


def corrected_bias(
    bias: torch.Tensor, weight: torch.Tensor, approximation: torch.Tensor, mean: torch.Tensor
) -> torch.Tensor:
    """Return bias + (W - W') E[x], [out] in the bias's dtype.

    Args:
        bias: [out], of any floating-point type.
        weight: W, [out, in] or [out, in, kh, kw].
        approximation: W', of the same shape.
        mean: E[x] of each column of `weight.flatten(1)`, [columns].

    Examples:
        >>> import torch
        >>> weight, mean = torch.tensor([[0.5, 1.0]]), torch.tensor([2.0, 1.0])
        >>> corrected_bias(torch.zeros(1), weight, weight.round(), mean)
        tensor([1.])
    """
    import torch

    rows = max(_PIECE // mean.numel(), 1)
    pieces = (tensor.flatten(1).split(rows) for tensor in (weight, approximation))
    shift = torch.cat(
        [(exact.float() - close.float()) @ mean.to(exact.device).float() for exact, close in zip(*pieces, strict=True)]
    )
    return (bias.float() + shift).to(bias.dtype)
