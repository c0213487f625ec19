"""Random weights, and statistics of random inputs, for tests of numerics."""

from __future__ import annotations

import torch

from sdcompress.quant.format import QuantizedTensor
from sdcompress.quant.grid_format import GridFormat
from sdcompress.quant.statistics import LayerStatistics


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return normally distributed values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def statistics_of(rows: torch.Tensor, *sizes: int) -> LayerStatistics:
    """Return the statistics of rows [n, columns], with moments in blocks of these sizes (none: one block)."""
    parts = rows.split(sizes or rows.shape[1], dim=1)
    return LayerStatistics(len(rows), rows.mean(0), tuple(part.T @ part / len(rows) for part in parts))


def step_of_weights(tensor: QuantizedTensor) -> torch.Tensor:
    """Return the scale of each weight as stored, [rows, columns] float64."""
    assert isinstance(tensor.format, GridFormat) and tensor.scale is not None
    scale = tensor.scale.double().flatten(1) if tensor.scale.dim() > 1 else tensor.scale.double()[:, None]
    if tensor.scale_step is not None:
        scale = scale * tensor.scale_step.double()[:, None]
    return scale[:, tensor.format.layout(tensor.shape).group_of_columns()]
