"""Input statistics gathered while pictures are drawn: exact, sampled evenly, and refused where they cannot be had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdcompress import open_source
from sdcompress.backends.torch.input_statistics import load_or_gather
from sdcompress.backends.torch.layer_rows import choose_rows, count_rows, take_rows
from sdcompress.backends.torch.observers import find_layer
from sdcompress.backends.torch.source_parts import open_component
from sdcompress.backends.torch.trajectories import CalibrationRun, Observer
from sdcompress.calibration.settings import Calibration
from sdcompress.errors import SourceError
from sdcompress.quant.statistics import LayerStatistics, Limits
from sdcompress.sources.opening import open_folder
from sdcompress.sources.source import Source

CALIBRATION = Calibration(prompts=("a red apple", "two cats"), num_inference_steps=4)
ALL_ROWS = Limits(rows=2**30)
LAYERS = {
    "text_encoder": ["text_model.encoder.layers.1.mlp.fc2"],
    "unet": [
        "conv_in",  # 3x3 with padding
        "down_blocks.0.downsamplers.0.conv",  # stride 2
        "up_blocks.1.resnets.0.conv_shortcut",  # 1x1
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
        "down_blocks.0.resnets.0.time_emb_proj",  # one row for each guidance branch
    ],
    "vae": ["encoder.down_blocks.0.downsamplers.0.conv", "decoder.conv_out"],  # the first padded by its owner
}


def gather(source: Source, wanted: Any, limits: Limits | None = None, **settings: Any) -> Any:
    """Component -> layer -> statistics; nothing is cached."""
    calibration = CALIBRATION.model_copy(update=settings)
    with TemporaryDirectory() as cache:
        found = load_or_gather(source, wanted, calibration, cache=Path(cache), device="cpu", limits=limits)
        return {component: dict(layers) for component, layers in found.items()}


@pytest.fixture(scope="module")
def nano(nano_folder: Path) -> Source:
    return open_folder(nano_folder)


class Inputs(Observer):
    """Keeps all rows of the layers' inputs in float64, unfolded by torch itself."""

    def __init__(self) -> None:
        self.rows: dict[str, list[torch.Tensor]] = {}

    @contextmanager
    def observe(self, component: str, model: nn.Module, runs: int) -> Iterator[None]:
        hooks = [self._hook(f"{component}.{name}", find_layer(model, component, name)) for name in LAYERS[component]]
        yield
        for hook in hooks:
            hook.remove()

    def _hook(self, name: str, layer: nn.Module) -> Any:
        def keep(layer: Any, inputs: Any) -> None:
            self.rows.setdefault(name, []).append(reference_rows(layer, inputs[0]))

        return layer.register_forward_pre_hook(keep)


def reference_rows(layer: Any, x: torch.Tensor) -> torch.Tensor:
    x = x.double()
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, layer.in_features)
    if layer.padding == "same":  # torch.nn.functional.unfold does not know the word; odd kernels here
        padding = tuple(gap * (size // 2) for gap, size in zip(layer.dilation, layer.kernel_size, strict=True))
    else:
        padding = 0 if layer.padding == "valid" else layer.padding
    patches = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


@pytest.fixture(scope="module")
def rows(nano: Source) -> dict[str, torch.Tensor]:
    inputs = Inputs()
    CalibrationRun(nano, LAYERS, CALIBRATION, device="cpu", observer=inputs).run()
    return {name: torch.cat(batches) for name, batches in inputs.rows.items()}


def check(statistics: LayerStatistics, rows: torch.Tensor, error: float) -> None:
    """Within `error`, relative to what the magnitudes of the values would add up to."""
    count, columns = rows.shape
    assert statistics.count == count
    assert torch.all((statistics.mean - rows.mean(0)).abs() <= error * rows.abs().mean(0))
    assert sum(block.shape[0] for block in statistics.moments) == columns
    start = 0
    for block in statistics.moments:
        part = rows[:, start : start + block.shape[0]]
        magnitudes = part.abs().T @ part.abs() / count
        assert torch.all((block - part.T @ part / count).abs() <= error * magnitudes)
        start += block.shape[0]


CONVOLUTIONS = {
    "padded": nn.Conv2d(3, 5, 3, padding=1),
    "strided": nn.Conv2d(3, 5, 3, stride=2, padding=1),
    "1x1": nn.Conv2d(6, 5, 1),
    "1x1 strided": nn.Conv2d(6, 5, 1, stride=(3, 2)),
    "uneven": nn.Conv2d(2, 5, (5, 2), stride=(1, 2), padding=(2, 3), dilation=(2, 1)),
    "same": nn.Conv2d(2, 5, (3, 5), padding="same", dilation=(1, 2)),
    "valid": nn.Conv2d(2, 5, 2, padding="valid"),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_rows_are_the_patches_that_meet_the_weight(name: str) -> None:
    layer = CONVOLUTIONS[name]
    x = torch.randn(2, layer.in_channels, 11, 14, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last) if name == "uneven" else x
    expected = reference_rows(layer, x)
    assert count_rows(layer, x) == len(expected)
    assert torch.equal(take_rows(layer, x, None).double(), expected)
    some = torch.tensor([0, 3, len(expected) - 1])
    assert torch.equal(take_rows(layer, x, some).double(), expected[some])
    output = take_rows(layer, x, None) @ layer.weight.flatten(1).T + layer.bias
    # Float32 sums of up to 54 products of values of order one.
    assert torch.allclose(output, layer(x).flatten(2).transpose(1, 2).reshape(len(expected), -1), atol=1e-5)


def test_rows_of_a_linear_layer() -> None:
    layer, x = nn.Linear(4, 2), torch.randn(2, 3, 5, 4)
    assert count_rows(layer, x) == 30
    assert torch.equal(take_rows(layer, x, None), x.view(30, 4))
    assert torch.equal(take_rows(layer, x, torch.tensor([1, 29])), x.view(30, 4)[[1, 29]])


@pytest.mark.parametrize(("total", "limit"), [(100, 100), (101, 100), (100, 7), (4096, 256), (5, 1)])
def test_every_row_is_chosen_once_a_round(total: int, limit: int) -> None:
    chosen = [choose_rows(total, limit, call) for call in range(3 * -(-total // limit))]
    if total <= limit:
        assert chosen == [None] * 3
        return
    some = [rows for rows in chosen if rows is not None]
    assert len(some) == len(chosen) and all(len(rows) <= limit for rows in some)
    counts = torch.bincount(torch.cat(some), minlength=total)
    assert counts.tolist() == [3] * total
    first, second = torch.cat(some[: len(some) // 3]), torch.cat(some[len(some) // 3 : 2 * len(some) // 3])
    assert len(some) == 3 * 5 == total * 3 or not torch.equal(first, second)  # other rows at the same step
    again = choose_rows(total, limit, 2)
    assert again is not None and torch.equal(again, some[2])


def test_statistics_are_those_of_all_inputs(nano: Source, rows: dict[str, torch.Tensor]) -> None:
    limits = Limits(rows=2**30, columns=100)
    found = gather(nano, LAYERS, limits)
    assert {component: sorted(layers) for component, layers in found.items()} == {
        component: sorted(layers) for component, layers in LAYERS.items()
    }
    for component, layers in found.items():
        for name, statistics in layers.items():
            # Float32 sums of up to 4096 products: n 2^-24 of their magnitudes is the worst case.
            check(statistics, rows[f"{component}.{name}"], error=4096 * 2.0**-24)
    assert len(found["unet"]["down_blocks.0.downsamplers.0.conv"].moments) == 3  # 288 columns, 99 at most
    assert found["unet"]["conv_in"].count == 2 * 4 * 2 * 8 * 8  # prompts, steps, branches, positions


def test_a_sample_covers_positions_and_both_branches_alike(nano: Source, rows: dict[str, torch.Tensor]) -> None:
    """Over one round of calls every row counts once; where inputs stay the same that long, nothing is lost at all."""
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"  # reads 2 x 16 tokens in each of 4 steps
    found = gather(nano, {"unet": [name]}, Limits(rows=2 * 4 * 8))["unet"][name]
    everything = rows[f"unet.{name}"]
    assert found.count == len(everything) / 4 == 64
    check(found, everything.view(2, 4, 32, -1)[:, 0].flatten(0, 1), error=4096 * 2.0**-24)
    texts = CalibrationRun(nano, {"unet": []}, CALIBRATION, device="cpu").encode_prompts()
    both = [torch.cat([text[branch] for text in texts]) for branch in ("prompt_embeds", "negative_prompt_embeds")]
    means = [each.flatten(0, 1).mean(0) for each in both]
    assert not torch.allclose(means[0], means[1], atol=1e-3)
    assert torch.allclose(found.mean, (means[0] + means[1]) / 2, atol=1e-6)  # a few float32 roundings


def test_a_sample_is_near_the_whole(nano: Source, rows: dict[str, torch.Tensor]) -> None:
    name = "down_blocks.0.downsamplers.0.conv"
    found = gather(nano, {"unet": [name]}, Limits(rows=2 * 4 * 8))["unet"][name]
    everything = rows[f"unet.{name}"]
    (block,) = found.moments
    exact = everything.T @ everything / len(everything)
    assert found.count == len(everything) / 4 == 2 * 4 * 8
    # 64 of 256 rows of 288 columns: independent rows would be off by about sqrt(trace(M)^2 / 64) in Frobenius norm.
    assert (block - exact).norm() < exact.trace() / 8


def test_same_seed_same_bytes(nano: Source) -> None:
    wanted = {"unet": ["conv_in", "conv_out"]}
    first, again = (gather(nano, wanted, Limits(rows=64), num_inference_steps=2)["unet"] for _ in range(2))
    other = gather(nano, wanted, Limits(rows=64), num_inference_steps=2, seed=1)["unet"]
    for name in wanted["unet"]:
        assert torch.equal(first[name].mean, again[name].mean)
        assert torch.equal(first[name].moments[0], again[name].moments[0])
        assert not torch.equal(first[name].moments[0], other[name].moments[0])


def test_without_guidance_there_is_one_branch(nano: Source) -> None:
    found = gather(nano, {"unet": ["conv_in"]}, ALL_ROWS, guidance_scale=1.0, num_inference_steps=1)
    assert found["unet"]["conv_in"].count == 2 * 8 * 8


def test_broken_weights_name_the_layer(nano_copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = nano_copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"][0] = torch.nan
    save_file(tensors, file)
    layer = "down_blocks.0.resnets.0.conv1"
    with pytest.raises(
        SourceError, match=rf"^unet\.{layer}: in its input \d+ of \d+ values are NaN or infinite; the so"
    ):
        gather(open_folder(nano_copy), {"unet": [layer]})


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"unet": ["conv_inn"]}, r"unet\.conv_inn: is no linear layer or convolution"),
        ({"unet": ["conv_norm_out"]}, r"unet\.conv_norm_out: is no linear layer or convolution"),
        ({"safety_checker": ["visual_projection"]}, "safety_checker: has no input statistics"),
    ],
)
def test_layers_that_have_no_statistics(wanted: dict[str, Sequence[str]], problem: str, nano: Source) -> None:
    with pytest.raises(SourceError, match=problem):
        gather(nano, wanted)


@pytest.mark.parametrize("change", [{"groups": 2}, {"padding_mode": "reflect"}])
def test_convolutions_that_have_no_statistics(
    change: dict[str, Any], nano: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_another_convolution(*arguments: Any) -> Any:
        model = open_component(*arguments)
        if hasattr(model, "conv_in"):
            model.conv_in = nn.Conv2d(4, 32, 3, padding=1, **change)
        return model

    monkeypatch.setattr("sdcompress.backends.torch.trajectories.open_component", with_another_convolution)
    with pytest.raises(SourceError, match=r"^unet\.conv_in: is a convolution in \d groups with padding of \w+"):
        gather(nano, {"unet": ["conv_in"]})


def test_a_layer_that_never_runs(nano: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_an_idle_layer(*arguments: Any) -> Any:
        model = open_component(*arguments)
        model.idle = nn.Linear(2, 2)
        return model

    monkeypatch.setattr("sdcompress.backends.torch.trajectories.open_component", with_an_idle_layer)
    with pytest.raises(SourceError, match=r"^unet\.idle: drawing pictures never runs it; leave it out"):
        gather(nano, {"unet": ["conv_in", "idle"]}, num_inference_steps=1)


def test_nothing_wanted_draws_nothing(nano: Source) -> None:
    assert gather(nano, {}) == gather(nano, {"unet": []}) == {}


def test_pipelines_that_cannot_be_calibrated() -> None:
    unknown = open_source("tiny-sd")
    unknown = replace(unknown, model_index=unknown.model_index | {"_class_name": "UniDiffuserPipeline"})
    with pytest.raises(SourceError, match="is a UniDiffuserPipeline; input statistics can be calibrated for"):
        gather(unknown, {"unet": ["conv_in"]})
