"""Signal to noise ratios against known ones and against the outputs themselves."""

import math

import pytest
import torch
from random_weights import statistics_of

from sdcompress.quant.error import output_sqnr_db, sqnr_db


def test_known_ratio():
    weight = torch.full((10, 10), 2.0)
    assert sqnr_db(weight, weight + 0.2) == pytest.approx(20.0, abs=1e-4)  # float32's 0.2


def test_equal_is_infinite():
    assert sqnr_db(torch.ones(3), torch.ones(3)) == math.inf


@pytest.mark.parametrize("shape", [(7, 12), (7, 3, 2, 2)])
def test_output_error_is_that_of_the_layer_s_outputs(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    """Against the outputs themselves, in float64; in pieces of two output channels as in one."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 12, generator=generator) * torch.logspace(-2, 2, 12)
    weight = torch.randn(shape, generator=generator)
    close = weight + 0.05 * torch.randn(shape, generator=generator)
    signal = (rows.double() @ weight.flatten(1).double().T).square().sum()
    noise = (rows.double() @ (weight - close).flatten(1).double().T).square().sum()
    expected = 10 * math.log10(signal / noise)
    # 1e-4 dB is 2e-5 of the ratio: some 12 x 200 float32 roundings of 2^-24 and little that cancels.
    assert output_sqnr_db(weight, close, statistics_of(rows)) == pytest.approx(expected, abs=1e-4)
    monkeypatch.setattr("sdcompress.quant.error.PIECE", 24)
    assert output_sqnr_db(weight, close, statistics_of(rows)) == pytest.approx(expected, abs=1e-4)


def test_output_error_adds_up_over_blocks():
    """As if inputs of different blocks had nothing in common: their cross products are left out."""
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    weight, close = torch.ones(2, 8), torch.ones(2, 8)
    close[:, 6] = 0.9
    first, second = rows[:, :4].sum(1).square().sum(), rows[:, 4:].sum(1).square().sum()
    expected = 10 * math.log10((first + second) / (0.1 * rows[:, 6]).square().sum())
    assert output_sqnr_db(weight, close, statistics_of(rows, 4, 4)) == pytest.approx(expected, abs=1e-4)  # as above


def test_output_error_of_inputs_that_never_come():
    rows = torch.zeros(4, 3)
    rows[:, 0] = 1
    weight, close = torch.ones(2, 3), torch.tensor([[1.0, 5.0, 5.0]] * 2)
    assert output_sqnr_db(weight, close, statistics_of(rows)) == math.inf


def test_output_error_of_shapes_that_do_not_fit():
    statistics = statistics_of(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"shape \[2, 3\].*statistics of 4 columns do not go together"):
        output_sqnr_db(torch.ones(2, 3), torch.ones(2, 3), statistics)
    with pytest.raises(ValueError, match="do not go together"):
        output_sqnr_db(torch.ones(2, 4), torch.ones(3, 4), statistics)
