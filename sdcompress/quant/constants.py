"""Constant tensors that layers need whenever they run, made once for each precision and device. Do not modify them.

Making one on the CPU at each call would mean copying it, and a GPU would have to finish its work first. torch.compile
would put that copy into its graph, so for it they are computed on the device, from the indices of their entries.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

_made: dict[tuple[Hashable, ...], torch.Tensor] = {}


def table(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the values as a tensor, [values].

    Examples:
        >>> table((0, 4), torch.uint8, torch.device("cpu"))
        tensor([0, 4], dtype=torch.uint8)
    """
    if not torch.compiler.is_compiling():
        return _once((values, dtype, device), lambda: torch.tensor(values, dtype=dtype, device=device))
    index = torch.arange(len(values), device=device)
    made = torch.full((len(values),), values[0], dtype=dtype, device=device)
    for place, value in enumerate(values[1:], 1):
        made = torch.where(index == place, value, made)
    return made


def hadamard_matrix(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return Sylvester's orthonormal Hadamard matrix, [size, size], for a size that is a power of two, up to 256.

    It is symmetric, so it is its own inverse. In half precision the entries are exact for even powers of two, and off
    by a factor of 1 - 1e-4 for odd ones, which is far below the rounding of such activations.

    Examples:
        >>> hadamard_matrix(4, torch.float32, torch.device("cpu"))[1]
        tensor([ 0.5000, -0.5000,  0.5000, -0.5000])
    """

    def make() -> torch.Tensor:
        index = torch.arange(size, device=device)
        parity = index.unsqueeze(1) & index  # the bits that row and column share, whose number decides on the sign
        for shift in (4, 2, 1):
            parity = parity ^ (parity >> shift)
        return (1 - 2 * (parity & 1)).to(dtype) * size**-0.5

    return make() if torch.compiler.is_compiling() else _once((size, dtype, device), make)


def _once(key: tuple[Hashable, ...], make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return what `make` gave for the key at the first call."""
    tensor = _made.get(key)
    if tensor is None:
        with torch.inference_mode(False):  # so that it can be used where gradients are needed
            tensor = make()
        if type(tensor) is torch.Tensor:  # not a tensor without values, as in torch.export
            _made[key] = tensor
    return tensor
