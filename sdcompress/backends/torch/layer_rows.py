"""The rows (tokens or patches) that go into a layer when it runs, or an even sample of them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F


def count_rows(layer: nn.Linear | nn.Conv2d, x: torch.Tensor) -> int:
    """Return the number of tokens that go into a linear layer, or of a convolution's output positions, in the batch."""
    if isinstance(layer, nn.Linear):
        return x.numel() // layer.in_features
    height, width = _output_size(layer, x)
    return x.shape[0] * height * width


@lru_cache(maxsize=64)  # layers of the same size take turns
def choose_rows(total: int, limit: int, call: int) -> torch.Tensor | None:
    """Return which rows of a layer's `call`-th run are sampled, in order; None for all, if they are `limit` or fewer.

    The sample has one of each `stride` neighbours, another one in each call. After `stride` calls each row was sampled
    once, so all positions and both guidance branches (halves of the batch) count alike.

    Returns:
        At most `limit` indices, int64.
    """
    if total <= limit:
        return None
    stride = -(-total // limit)
    strata = -(-total // stride)
    # Offsets are drawn again after each round, so that a timestep does not always get the same positions. There is one
    # for each stratum: with one for all, a stride that divides the width would sample the same columns in each line.
    offsets = torch.randint(stride, (strata,), generator=torch.Generator().manual_seed(call // stride))
    rows = torch.arange(strata) * stride + (offsets + call) % stride
    return rows[rows < total]


def take_rows(layer: nn.Linear | nn.Conv2d, x: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """Return rows of the layer's input `x` as [rows, columns], in the order of `weight.flatten(1)`.

    Args:
        rows: from `choose_rows`; None for all.
    """
    if rows is not None:
        rows = rows.to(x.device, non_blocking=True)
    if isinstance(layer, nn.Linear):
        tokens = x.reshape(-1, layer.in_features)
        return tokens if rows is None else tokens.index_select(0, rows)
    channels = x.shape[1]
    height, width = _output_size(layer, x)
    pixels = x.permute(0, 2, 3, 1)  # [batch, height, width, in]
    if any(edges := _edges_of(layer)):
        pixels = F.pad(pixels, (0, 0, *edges))
    padded_height, padded_width = pixels.shape[1:3]
    if rows is None:
        rows = torch.arange(x.shape[0] * height * width, device=x.device)
    picture, place = rows // (height * width), rows % (height * width)
    row, column = place // width * layer.stride[0], place % width * layer.stride[1]
    corner = (picture * padded_height + row) * padded_width + column  # of each patch, as an index of pixels
    down, along = (torch.arange(size, device=x.device) for size in layer.kernel_size)
    within = down[:, None] * (layer.dilation[0] * padded_width) + along * layer.dilation[1]  # [kh, kw]
    patches = pixels.reshape(-1, channels).index_select(0, (corner[:, None] + within.flatten()).flatten())
    return patches.view(len(rows), -1, channels).transpose(1, 2).reshape(len(rows), -1)


def _edges_of(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Return the zeros that a convolution adds around its input: left, right, top, bottom."""
    if layer.padding == "valid":
        return (0, 0, 0, 0)
    if layer.padding == "same":  # an odd one goes to the end, as in torch
        down, along = (gap * (size - 1) for gap, size in zip(layer.dilation, layer.kernel_size, strict=True))
        return (along // 2, along - along // 2, down // 2, down - down // 2)
    assert isinstance(layer.padding, tuple)
    vertical, horizontal = layer.padding
    return (horizontal, horizontal, vertical, vertical)


def _output_size(layer: nn.Conv2d, x: torch.Tensor) -> tuple[int, int]:
    left, right, top, bottom = _edges_of(layer)
    spans = [gap * (size - 1) + 1 for gap, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    height = (x.shape[2] + top + bottom - spans[0]) // layer.stride[0] + 1
    width = (x.shape[3] + left + right - spans[1]) // layer.stride[1] + 1
    return height, width
