"""A low-rank correction: a product of two thin float16 matrices that is added to the rounded weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.statistics import LayerStatistics

_PIECE = 2048  # columns worked on at once where there are no statistics


def split(
    weight: torch.Tensor, rank: int, statistics: LayerStatistics | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """up [out, rank] and down [rank, columns], float16: the product of that rank nearest to `weight.flatten(1)`.

    Nearest in the sum of squares, or with `statistics` in the layer's output, tr(E M E^T) with E = W - up down and M
    the blocks of E[x x^T] that they have. `rank` is below both sides of the weight.
    """
    flat = weight.flatten(1).float()  # [out, columns]
    basis = _leading_outputs(flat, rank, statistics)  # [out, rank], orthonormal
    down = basis.T @ flat
    # Both halves get the same largest value, so that neither comes near the limits of float16 before the other.
    balance = (down.abs().amax(dim=1) / basis.abs().amax(dim=0)).clamp(min=1e-12).sqrt()  # [rank]
    return (basis * balance).half(), (down / balance.unsqueeze(1)).half()


def product(up: torch.Tensor, down: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """What the halves stand for: float32, in the weight's shape."""
    return (up.float() @ down.float()).view(shape)


def _leading_outputs(flat: torch.Tensor, rank: int, statistics: LayerStatistics | None) -> torch.Tensor:
    """[out, rank] float32: the leading left singular vectors U of W S, with S S^T = M; without statistics of W.

    U U^T W is the product wanted, as U U^T W S is the one nearest to W S (Eckart and Young 1936). U are eigenvectors of
    W M W^T, so S itself is not needed, and neither is a singular value decomposition of a wide W. Of a tall W = Q R
    they are Q times those of R M R^T. All in float64, since eigenvalues are the squares of singular values.
    """
    import torch

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
