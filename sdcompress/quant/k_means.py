"""k-means of weighted numbers: the palette that replaces a layer's weights with the least error.

Lloyd's iterations (1982, method I) end in a local optimum, so the start decides. For up to 64 centres the start is the
best solution for the numbers gathered in 256 bins, found by dynamic programming (Grønlund et al. 2017,
arXiv:1701.07204). Above that, where its time grows and the bins become too few, the start follows the density that is
best for many centres: the cube root of the numbers' own (Panter and Dite 1951). All iterations work on a histogram of
the numbers as float16, relative to the largest: 2^16 bins with their exact means, so that neither time nor memory
grows with the layer.
"""

from __future__ import annotations

import torch

ITERATIONS = 100  # of Lloyd's algorithm at most
PIECE = 2**22  # numbers added to the histogram at once
BINS = 256  # of the dynamic programming
MOST_BY_PROGRAMMING = 64  # centres


def k_means(values: torch.Tensor, weights: torch.Tensor, count: int) -> torch.Tensor:
    """Return `count` centres with a small sum of weights (value - centre)^2: [count] float64 on the CPU, sorted.

    Args:
        values: float32, of any shape.
        weights: of each value, float32 of as many entries as a row of `values` has; or one for all.
        count: number of centres; where there are fewer different values, the largest is repeated.

    Examples:
        >>> k_means(torch.tensor([1.0, 1.0, 2.0, 8.0]), torch.tensor([1.0, 1.0, 2.0, 1.0]), 2)
        tensor([1.5000, 8.0000], dtype=torch.float64)
    """
    mass, moment = _histogram(values, weights)
    places = moment / mass
    if len(places) <= count:
        return torch.cat([places, places[-1:].expand(count - len(places))])
    start = _by_programming if count <= MOST_BY_PROGRAMMING else _by_density
    centres = start(mass, moment, count)
    total_mass, total_moment = _cumulated(mass), _cumulated(moment)
    for _ in range(ITERATIONS):
        borders = torch.searchsorted(places, (centres[1:] + centres[:-1]) / 2)
        edges = torch.cat([borders.new_zeros(1), borders, borders.new_tensor([len(places)])])
        members, sums = total_mass[edges].diff(), total_moment[edges].diff()
        moved = torch.where(members > 0, sums / members, centres).sort().values
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _histogram(values: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight, and weight x value, in each bin that is not empty, in order: [bins] float64 on the CPU."""
    largest = float(values.abs().max()) or 1.0
    mass, moment = torch.zeros(2, 2**16, dtype=torch.float64)
    rows = values.reshape(-1, weights.numel())
    for piece in rows.split(max(1, PIECE // weights.numel())):
        numbers = piece.flatten().cpu()  # where sums have a fixed order, and float64 exists
        heavy = weights.cpu().double().repeat(len(piece))
        bits = (numbers / largest).half().view(torch.int16).int()
        key = torch.where(bits < 0, -(bits & 0x7FFF), bits) + 2**15  # ascending with the number
        mass += torch.bincount(key, heavy, 2**16)
        moment += torch.bincount(key, heavy * numbers, 2**16)
    filled = mass > 0
    return mass[filled], moment[filled]


def _by_programming(mass: torch.Tensor, moment: torch.Tensor, count: int) -> torch.Tensor:
    """Return the best centres for the numbers gathered in BINS bins, [count].

    The bins are spread evenly over the mean of the numbers' ranks and their range.
    """
    places = moment / mass
    ranks = (mass.cumsum(0) - mass / 2) / mass.sum()
    spread = (places - places[0]) / (places[-1] - places[0])
    bins = ((ranks + spread) / 2 * BINS).long().clamp_(max=BINS - 1)
    mass, moment = (torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, each) for each in (mass, moment))
    mass, moment = mass[mass > 0], moment[mass > 0]
    places, size = moment / mass, len(mass)
    if size <= count:
        return torch.cat([places, places[-1:].expand(count - size)])
    masses, moments, squares = (_cumulated(each) for each in (mass, moment, moment * places))
    # The error of one centre for bins i .. j - 1, and infinity where there are none: [i, j].
    loss = squares - squares[:, None] - (moments - moments[:, None]).square_() / (masses - masses[:, None])
    loss = torch.where(torch.arange(size + 1) > torch.arange(size + 1)[:, None], loss, torch.inf)
    least, last_starts = loss[0], []
    for _ in range(count - 1):
        least, start = (least[:, None] + loss).min(dim=0)
        last_starts.append(start)
    edges = [size]
    for start in reversed(last_starts):
        edges.append(int(start[edges[-1]]))
    borders = torch.tensor([0, *reversed(edges)])
    return moments[borders].diff() / masses[borders].diff()


def _by_density(mass: torch.Tensor, moment: torch.Tensor, count: int) -> torch.Tensor:
    """Return quantiles of the cube root of the numbers' density, [count]."""
    places = moment / mass
    cells = 4 * count
    first, width = places[0], (places[-1] - places[0]) / cells
    cell = ((places - first) / width).long().clamp_(max=cells - 1)
    density = torch.zeros(cells, dtype=torch.float64).index_add_(0, cell, mass)
    smooth = torch.nn.functional.avg_pool1d(density.view(1, 1, -1), 5, 1, 2, count_include_pad=False).view(-1)
    share = _cumulated(smooth.pow(1 / 3))
    wanted = (torch.arange(count, dtype=torch.float64) + 0.5) / count * share[-1]
    index = torch.searchsorted(share, wanted).clamp_(1, cells)
    within = (wanted - share[index - 1]) / (share[index] - share[index - 1])
    return first + width * (index - 1 + within)


def _cumulated(values: torch.Tensor) -> torch.Tensor:
    """Return the sums of the first 0, 1, ... n values, [n + 1]."""
    return torch.nn.functional.pad(values.cumsum(0), (1, 0))
