"""The damage that a rounded weight does to the picture, from gradients of the picture and moments of the inputs.

To first order an error dW of a weight [out, columns] changes the picture p by E|dp|^2 = E <dW, g>^2 with g the
gradient of <v, p> for a random v (`backends/torch/picture_gradients.py`). dW has two parts:

- Few bits make weights smaller: dW_o = -a_o W_o + e_o with a_o = -<dW_o, W_o> / |W_o|^2. All rows and all positions
  shrink alike, so this part adds up coherently: its effect is sum_o a_o <W_o, g_o>, which each backward pass tells.
- The rest e is taken to be independent between rows. g is a sum of products of an output's gradient and an input; if a
  row's gradient has the covariance of the inputs up to a factor (the factored curvature of K-FAC, Martens & Grosse
  2015, arXiv:1503.05671, section 3), its effect is sum_o r_o (e_o M e_o^T) / tr M, with r_o = E|g_o|^2 and
  M = E[x x^T]. So a rounding that moves error to directions that inputs rarely have (GPTQ) is credited for it.

Where the bias takes the mean error of the output, inputs count without their mean m: e M e^T - (e m)^2, and
<W_o, g_o> - (W_o m) b_o with b the gradient of the bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdcompress.backends.torch.picture_gradients import ALONG, BIAS, ENERGY

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
        rows: of each prompt and row |g_o|^2, <W_o, g_o> and b_o, [prompts, 3, out].
        statistics: of the layer's input; None where there are none (embeddings), for which M is taken to be 1.
        pixels: numbers that the picture has.
        bias_corrected: whether the mean error of each output is added to the layer's bias.

    Examples:
        >>> import torch
        >>> weight = torch.tensor([[1.0, -1.0]])
        >>> rows = torch.tensor([[[8.0], [0.0], [0.0]]])  # the picture does not change with the weight's length
        >>> picture_damage(weight, weight + 0.5, rows, None, pixels=4)
        0.5
    """
    exact = weight.float().flatten(1)
    error = approximation.float().flatten(1) - exact
    shrunk = -(error * exact).sum(1) / exact.square().sum(1).clamp_(min=1e-30)  # [out]
    rest = error + shrunk[:, None] * exact
    energy, along = rows[:, ENERGY].mean(0), rows[:, ALONG]
    if statistics is None:
        noise, trace = rest.square().sum(1), float(rest.shape[1])
    else:
        noise, trace = rest.new_zeros(rest.shape[0]), float(statistics.second_moment.sum())
        start = 0
        for block in statistics.moments:
            part = rest[:, start : start + block.shape[0]]
            noise += ((part @ block) * part).sum(1)
            start += block.shape[0]
        if bias_corrected:
            noise = (noise - (rest @ statistics.mean).square()).clamp_(min=0)
            along = along - (exact @ statistics.mean) * rows[:, BIAS]
    coherent = (along * shrunk).sum(1).square().mean()
    return float(coherent + (energy * noise).sum() / max(trace, 1e-30)) / pixels
