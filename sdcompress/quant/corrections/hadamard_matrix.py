"""Sylvester's Hadamard matrices, made once for each size, precision and device."""

from __future__ import annotations

import torch

_made: dict[tuple[int, torch.dtype, torch.device], torch.Tensor] = {}


def hadamard_matrix(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the orthonormal Hadamard matrix, [size, size], for a size that is a power of two. Do not modify it.

    It is symmetric, so it is its own inverse. In half precision the entries are exact for even powers of two, and off
    by a factor of 1 - 1e-4 for odd ones, which is far below the rounding of such activations.

    Examples:
        >>> hadamard_matrix(4, torch.float32, torch.device("cpu"))[1]
        tensor([ 0.5000, -0.5000,  0.5000, -0.5000])
    """
    if torch.compiler.is_compiling():
        return _make(size, dtype, device)  # the compiler folds it; a cached tensor would be an input of the graph
    key = (size, dtype, device)
    matrix = _made.get(key)
    if matrix is None:
        with torch.inference_mode(False):  # so that it can be used where gradients are needed
            matrix = _make(size, dtype, device)
        if type(matrix) is torch.Tensor:  # not a tensor without values, as in torch.export
            _made[key] = matrix
    return matrix


def _make(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    rows = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(size.bit_length() - 1):
        rows = torch.cat([torch.cat([rows, rows], dim=1), torch.cat([rows, -rows], dim=1)])
    return (rows * size**-0.5).to(dtype).to(device)
