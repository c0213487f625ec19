"""Sylvester's Hadamard matrices as constants, made once for each device and precision."""

from __future__ import annotations

import torch

_made: dict[tuple[int, torch.dtype, torch.device], torch.Tensor] = {}


def hadamard_matrix(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[size, size], size a power of two: symmetric and orthonormal, so that it undoes itself; do not change it.

    In half precision an odd power's entries are off by a factor of 1 - 1e-4, far below what such activations are
    rounded by; even powers' are exact.
    """
    if torch.compiler.is_compiling():
        return _make(size, dtype, device)  # the compiler folds it; a tensor from outside would be an input of the graph
    key = (size, dtype, device)
    matrix = _made.get(key)
    if matrix is None:
        with torch.inference_mode(False):  # else it could not be used where gradients are wanted
            matrix = _make(size, dtype, device)
        if type(matrix) is torch.Tensor:  # not a stand-in without values, as torch.export works with
            _made[key] = matrix
    return matrix


def _make(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    rows = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(size.bit_length() - 1):
        rows = torch.cat([torch.cat([rows, rows], dim=1), torch.cat([rows, -rows], dim=1)])
    return (rows * size**-0.5).to(dtype).to(device)
