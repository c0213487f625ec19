import pytest
import torch

from sdcompress.quant.statistics import LayerStatistics
from sdcompress.searching.damage import picture_damage


def rows_of(gradients: torch.Tensor, weight: torch.Tensor, biases: torch.Tensor) -> torch.Tensor:
    """What is kept of gradients [prompts, out, in]."""
    return torch.stack([gradients.square().sum(2), (gradients * weight).sum(2), biases], dim=1)


def test_a_smaller_weight_does_exactly_what_the_gradients_say() -> None:
    """W' = (1 - a) W has no other error, so the damage is E <a W, g>^2 without any assumption."""
    generator = torch.Generator().manual_seed(0)
    weight, gradients = torch.randn(3, 6, generator=generator), torch.randn(5, 3, 6, generator=generator)
    shares = torch.tensor([[0.1], [0.3], [0.0]])
    rows = rows_of(gradients, weight, torch.zeros(5, 3))
    expected = float((gradients * (shares * weight)).sum((1, 2)).square().mean()) / 7
    assert picture_damage(weight, weight * (1 - shares), rows, None, 7) == pytest.approx(expected, rel=1e-4)


def test_with_the_mean_in_the_bias_only_deviations_count() -> None:
    """Gradients g = sum_p d_p x_p^T of outputs' gradients d; the corrected bias undoes a W m at every position."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3, 6, generator=generator)
    x, d = torch.randn(4, 20, 6, generator=generator) + 2, torch.randn(4, 20, 3, generator=generator)
    mean = x.mean((0, 1))
    statistics = LayerStatistics(80, mean, (torch.einsum("kpi,kpj->ij", x, x) / 80,))
    rows = rows_of(torch.einsum("kpo,kpi->koi", d, x), weight, d.sum(1))
    effects = torch.einsum("kpo,oi,kpi->k", d, 0.2 * weight, x - mean)
    expected = float(effects.square().mean()) / 5
    found = picture_damage(weight, 0.8 * weight, rows, statistics, 5, bias_corrected=True)
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_rest_is_weighted_by_rows_and_inputs() -> None:
    """With one block, sum_o r_o (e_o M e_o^T) is the mean over inputs of sum_o r_o (e_o x)^2."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(50, 6, generator=generator) + 1
    weight, error = torch.randn(3, 6, generator=generator), torch.randn(3, 6, generator=generator) * 0.1
    error -= (error * weight).sum(1, keepdim=True) / weight.square().sum(1, keepdim=True) * weight  # nothing shrinks
    energies = torch.tensor([1.0, 4.0, 0.0])
    rows = torch.stack([energies, torch.ones(3), torch.zeros(3)])[None]
    moments = x.T @ x / 50
    statistics = LayerStatistics(50, x.mean(0), (moments,))
    outputs = x @ error.T
    expected = float((outputs.square() @ energies).mean() / moments.trace() / 10)
    assert picture_damage(weight, weight + error, rows, statistics, 10) == pytest.approx(expected, rel=1e-4)
    deviations = outputs - outputs.mean(0)
    expected = float((deviations.square() @ energies).mean() / moments.trace() / 10)
    corrected = picture_damage(weight, weight + error, rows, statistics, 10, bias_corrected=True)
    assert corrected == pytest.approx(expected, rel=1e-3)


def test_blocks_are_added_up() -> None:
    weight, approximation = torch.tensor([[0.0, 1.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 3.0, 4.0]])
    blocks = LayerStatistics(9, torch.zeros(4), (2 * torch.eye(2), torch.eye(2)))
    rows = torch.tensor([[[1.0], [5.0], [0.0]]])
    assert picture_damage(weight, approximation, rows, blocks, 1) == pytest.approx((2 * 1 + 25) / 6)
