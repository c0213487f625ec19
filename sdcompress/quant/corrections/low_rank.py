"""A low-rank correction: a product of two thin float16 matrices that is added to the rounded weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sdcompress.quant.statistics import LayerStatistics

_PIECE = 2048  # columns processed at once where there are no statistics


def split(
    weight: torch.Tensor, rank: int, statistics: LayerStatistics | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return up [out, rank] and down [rank, columns], float16: the closest product of that rank to the weight.

    Args:
        weight: W, [out, in] or [out, in, kh, kw]; its columns are those of `weight.flatten(1)`.
        rank: less than the rows and the columns.
        statistics: of the layer's input. With them, the product is closest in the layer's output, tr(E M E^T) with
            E = W - up down and M the blocks of E[x x^T]; without, in the sum of squares.

    Examples:
        >>> weight = torch.outer(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, -1.0]))
        >>> up, down = split(weight, rank=1)
        >>> bool(torch.allclose(product(up, down, (3, 3)), weight, atol=0.01))
        True
    """
    flat = weight.flatten(1).float()  # [out, columns]
    basis = _leading_outputs(flat, rank, statistics)  # [out, rank], orthonormal
    down = basis.T @ flat
    # Both get the same largest value, so that neither reaches the limits of float16 before the other.
    balance = (down.abs().amax(dim=1) / basis.abs().amax(dim=0)).clamp(min=1e-12).sqrt()  # [rank]
    return (basis * balance).half(), (down / balance.unsqueeze(1)).half()


def product(up: torch.Tensor, down: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return up @ down in float32 and the weight's shape."""
    return (up.float() @ down.float()).view(shape)


def _leading_outputs(flat: torch.Tensor, rank: int, statistics: LayerStatistics | None) -> torch.Tensor:
    """Return the leading left singular vectors U of W S, S S^T = M (without statistics: of W), [out, rank] float32.

    U U^T W is the product wanted, since U U^T W S is the closest to W S (Eckart and Young 1936). U are eigenvectors of
    W M W^T, so neither S nor a singular value decomposition of a wide W is needed. For a tall W = Q R they are Q times
    those of R M R^T. All in float64, since eigenvalues are the squares of singular values.
    """
    device = "cpu" if flat.device.type == "mps" else flat.device  # MPS has no float64
    wide, tall = flat, None
    if flat.shape[0] > flat.shape[1]:
        tall, wide = torch.linalg.qr(flat.to(device, torch.float64))
    gram = torch.zeros(wide.shape[0], wide.shape[0], dtype=torch.float64, device=device)
    sizes = _PIECE if statistics is None else [block.shape[0] for block in statistics.moments]
    for place, columns in enumerate(wide.split(sizes, dim=1)):
        piece = columns.to(device, torch.float64)
        gram.addmm_(piece if statistics is None else piece @ statistics.moments[place].to(piece), piece.T)
    leading = torch.linalg.eigh(gram).eigenvectors[:, -rank:].flip(1)
    return (leading if tall is None else tall @ leading).to(flat)
