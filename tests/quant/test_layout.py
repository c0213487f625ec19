"""Which group a weight belongs to, against loops, partial last groups included."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcompress.quant.layout import Layout


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 3),
    channels=st.integers(1, 9),
    kernel=st.sampled_from([(), (1, 1), (2, 3)]),
    group=st.sampled_from([None, 1, 2, 3, 4, 16]),
    per_position=st.booleans(),
)
def test_equals_loops(rows: int, channels: int, kernel: tuple[int, ...], group: int | None, per_position: bool) -> None:
    shape = (rows, channels, *kernel)
    layout, positions = Layout(shape, group, per_position), math.prod(kernel)
    expected = []
    for channel in range(channels):
        for position in range(positions):
            block = 0 if group is None else channel // group
            expected.append(block * positions + position if per_position and group is not None else block)
    assert layout.group_of_columns().tolist() == expected
    assert layout.groups == max(expected) + 1 and layout.columns == len(expected)
    weight = torch.arange(1.0, rows * len(expected) + 1).view(shape)
    grouped = layout.grouped(weight)
    for row in range(rows):
        for number in range(layout.groups):
            own = [float(weight.flatten(1)[row, j]) for j, other in enumerate(expected) if other == number]
            held = grouped[row, number].tolist()
            assert sorted(value for value in held if value) == sorted(own)
            assert held.count(0.0) == len(held) - len(own)
    scale = torch.arange(float(rows * layout.groups)).view(rows, *layout.scale_shape[1:])
    wanted = scale.view(rows, -1)[:, expected].view(shape)
    assert torch.equal((layout.split(torch.ones(shape)) * layout.spread(scale)).view(shape), wanted)
