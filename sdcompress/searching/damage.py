"""The damage that a rounded weight does to the picture, from gradients of the picture and moments of the inputs.

To first order an error dW of a weight [out, columns] changes the picture p by E|dp|^2 = E <dW, g>^2 with g the
gradient of <v, p> for a random v (`backends/torch/picture_gradients.py`). g is a sum of products of an output's
gradient and an input. If the errors of different rows are independent, and a row's gradient has the covariance of the
inputs up to a factor (the factored curvature of K-FAC, Martens & Grosse 2015, arXiv:1503.05671, section 3), then

    E|dp|^2 = sum_o r_o (dW_o M dW_o^T) / tr M,

with r_o = E|g_o|^2 and M = E[x x^T]. So a rounding that moves error to directions that inputs rarely have (GPTQ) is
credited for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.statistics import LayerStatistics


def picture_damage(
    weight: torch.Tensor,
    approximation: torch.Tensor,
    rows: torch.Tensor,
    statistics: LayerStatistics | None,
    pixels: int,
    bias_corrected: bool = False,
) -> float:
    """Return the mean squared change of the picture, in units of its range [0, 1] squared.

    Args:
        weight: W, [out, in] or [out, in, kh, kw].
        approximation: W', of the same shape.
        rows: r, the mean squared gradient of each row, [out].
        statistics: of the layer's input; None where there are none (embeddings), for which M is taken to be 1.
        pixels: numbers that the picture has.
        bias_corrected: whether the mean error of each output is added to the layer's bias; then only the inputs'
            deviations from their mean count.

    Examples:
        >>> import torch
        >>> weight, rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([8.0, 0.0])
        >>> picture_damage(weight, weight + 0.5, rows, None, pixels=4)
        0.5
    """
    error = (approximation.float() - weight.float()).flatten(1)
    if statistics is None:
        return float((rows * error.square().mean(1)).sum()) / pixels
    noise = error.new_zeros(error.shape[0])
    start = 0
    for block in statistics.moments:
        part = error[:, start : start + block.shape[0]]
        noise += ((part @ block) * part).sum(1)
        start += block.shape[0]
    if bias_corrected:
        noise = (noise - (error @ statistics.mean).square()).clamp_(min=0)
    trace = float(statistics.second_moment.sum())
    return float((rows * noise).sum()) / max(trace, 1e-30) / pixels
