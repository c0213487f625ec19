import pytest
import torch

from sdcompress.quant.statistics import LayerStatistics
from sdcompress.searching.damage import picture_damage


def test_it_is_the_mean_over_inputs_of_weighted_squared_outputs() -> None:
    """With one block, sum_o r_o (dW_o M dW_o^T) is the mean over inputs of sum_o r_o (dW_o x)^2."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator) + 1
    weight, error = torch.randn(3, 6, generator=generator), torch.randn(3, 6, generator=generator) * 0.1
    rows = torch.tensor([1.0, 4.0, 0.0])
    moments = x.T @ x / 50
    statistics = LayerStatistics(50, x.mean(0), (moments,))
    outputs = x @ error.T
    expected = float((outputs.square() @ rows).mean() / moments.trace() / 10)
    assert picture_damage(weight, weight + error, rows, statistics, 10) == pytest.approx(expected, rel=1e-4)
    deviations = outputs - outputs.mean(0)  # what is left when the bias takes the mean
    expected = float((deviations.square() @ rows).mean() / moments.trace() / 10)
    corrected = picture_damage(weight, weight + error, rows, statistics, 10, bias_corrected=True)
    assert corrected == pytest.approx(expected, rel=1e-3)


def test_blocks_are_added_up() -> None:
    weight, error = torch.zeros(1, 4), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    blocks = LayerStatistics(9, torch.zeros(4), (2 * torch.eye(2), torch.eye(2)))
    assert picture_damage(weight, error, torch.ones(1), blocks, 1) == pytest.approx((2 * 5 + 25) / 6)
