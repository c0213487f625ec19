"""Parts of training: average, adapters, losses, batches and trajectories against slow references."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from listeners import Events
from torch import nn

from sdcompress.backends.torch.training.adapters import add_adapters, merge_adapters
from sdcompress.backends.torch.training.average import decay_at, update
from sdcompress.backends.torch.training.batches import draw_batch
from sdcompress.backends.torch.training.losses import feature_loss, output_loss, record_features, stages_of
from sdcompress.backends.torch.training.pool import Pool, load_or_draw
from sdcompress.calibration.prompts import GENERAL, default_prompts
from sdcompress.calibration.settings import Calibration
from sdcompress.calibration.training_prompts import training_prompts
from sdcompress.planning.training_memory import adapter_parameters
from sdcompress.progress import silent
from sdcompress.sources.opening import open_source
from sdcompress.sources.spec import ComponentSpec, parameter

CPU = torch.device("cpu")


def test_the_average_weighs_as_its_formula_says() -> None:
    """Unrolled in float64: each value weighs one less its decay, times the decays of all that came after it."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(5, generator=generator) for _ in range(40)]
    average = [torch.zeros(5)]
    for step, value in enumerate(values):
        update(average, [value], step, 0.7)
    wanted = torch.zeros(5, dtype=torch.float64)
    for step, value in enumerate(values):
        weight = 1 - decay_at(step, 0.7)
        for later in range(step + 1, len(values)):
            weight *= decay_at(later, 0.7)
        wanted += weight * value.double()
    # Forty roundings of values near 1 in float32.
    assert torch.allclose(average[0].double(), wanted, atol=40 * 2**-24 * 4)
    assert decay_at(0, 0.7) == pytest.approx(0.1) and decay_at(1000, 0.7) == 0.7


def test_merged_adapters_compute_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.Conv2d(6, 2, 1), nn.Flatten())
    model.append(nn.Linear(2 * 16, 4))
    plain = copy.deepcopy(model)
    x = torch.randn(2, 3, 4, 4, generator=generator)
    add_adapters(model, 2, seed=0)
    assert torch.equal(model(x), plain(x))  # an update begins as nothing
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert all(name.endswith((".up", ".down")) for name in trainable)
    specs = {name: parameter(tuple(value.shape), "F32") for name, value in plain.named_parameters()}
    spec = ComponentSpec("m", "diffusers", "M", {}, specs)
    assert sum(value.numel() for value in trainable.values()) == adapter_parameters(spec, 2)
    with torch.no_grad():
        for value in trainable.values():
            value.add_(torch.randn(value.shape, generator=generator))
    trained = model(x)
    merge_adapters(model)
    assert torch.equal(model(x), trained)  # the same sums, made before instead of at each step
    assert model.state_dict().keys() == plain.state_dict().keys()
    difference = (model[0].weight - plain[0].weight).flatten(1)
    assert torch.linalg.matrix_rank(difference.double(), rtol=1e-4) == 2  # float32 sums blur the others


def test_losses_against_a_slow_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        {stage: torch.randn(2, 3, 4, 4, generator=generator) * scale for stage, scale in (("a", 1), ("b", 100))}
        for _ in range(2)
    )
    shares = []
    for stage in teacher:
        s, t = student[stage].double().flatten().tolist(), teacher[stage].double().flatten().tolist()
        mean = sum(t) / len(t)
        variance = sum((each - mean) ** 2 for each in t) / (len(t) - 1)
        shares.append(sum((x - y) ** 2 for x, y in zip(s, t, strict=True)) / len(t) / variance)
    assert float(feature_loss(student, teacher)) == pytest.approx(sum(shares) / 2, rel=1e-5)  # float32 sums of 96
    scaled = {stage: value * 7 for stage, value in student.items()}, {s: value * 7 for s, value in teacher.items()}
    assert float(feature_loss(*scaled)) == pytest.approx(float(feature_loss(student, teacher)), rel=1e-5)
    assert float(output_loss(student["a"], teacher["a"])) == pytest.approx(
        float(((student["a"] - teacher["a"]) ** 2).mean())
    )


def test_stages_and_what_is_seen_of_them(nano_folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(nano_folder, subfolder="unet")
    stages = stages_of(unet)
    assert stages == ("down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1", "mid_block")
    with torch.no_grad(), record_features(unet, stages) as seen:
        unet(torch.randn(1, 4, 8, 8), 3, torch.randn(1, 16, 32))
    assert {stage: tuple(value.shape[1:]) for stage, value in seen.items()} == {
        "down_blocks.0": (32, 4, 4),
        "down_blocks.1": (64, 4, 4),
        "mid_block": (64, 4, 4),
        "up_blocks.0": (64, 8, 8),
        "up_blocks.1": (32, 8, 8),
    }
    assert not any(module._forward_hooks for module in unet.modules())


@pytest.fixture
def pool(nano_folder: Path, tmp_path: Path) -> Pool:
    calibration = Calibration(prompts=("ab", "c"), prompt_count=2, num_inference_steps=3)
    return load_or_draw(open_source(str(nano_folder)), calibration, silent, tmp_path, "cpu")


def test_the_pool_is_what_the_denoiser_is_given(nano_folder: Path, tmp_path: Path) -> None:
    """Against the stock pipeline, and the second time from the cache."""
    from diffusers import StableDiffusionPipeline

    from sdcompress.calibration.settings import FIRST_SEED

    source = open_source(str(nano_folder))
    calibration = Calibration(prompts=("ab", "c"), prompt_count=2, num_inference_steps=3, guidance_scale=2.0)
    events = Events("calibrating")
    drawn = load_or_draw(source, calibration, events, tmp_path, "cpu")
    assert events.counts == {"text_encoder": 2, "unet": 2 * 3}  # two prompts, three steps for each
    pipeline = StableDiffusionPipeline.from_pretrained(nano_folder)
    pipeline.set_progress_bar_config(disable=True)
    given = []
    pipeline.unet.register_forward_pre_hook(lambda model, arguments: given.append(arguments))
    generator = torch.Generator().manual_seed(FIRST_SEED + 1)
    end = pipeline(
        "c", num_inference_steps=3, guidance_scale=2.0, generator=generator, output_type="latent"
    ).images  # fmt: skip
    # Kept in float16, of which half a step is 2^-11 of a value.
    for place, (sample, timestep) in enumerate(given):
        assert torch.allclose(drawn.points[1, place].float(), sample[1], rtol=2**-10, atol=1e-4)
        assert float(drawn.timesteps[place]) == float(timestep)
    assert torch.allclose(drawn.ends[1].float(), end[0], rtol=2**-10, atol=1e-4)
    assert drawn.branches == 2 and drawn.conditions["encoder_hidden_states"].shape == (2, 2, 16, 32)
    events.clear()
    again = load_or_draw(source, calibration, events, tmp_path, "cpu")
    assert events == [] and torch.equal(again.points, drawn.points) and torch.equal(again.ends, drawn.ends)


def test_drawing_goes_on_after_the_last_whole_prompt(nano_folder: Path, tmp_path: Path) -> None:
    source = open_source(str(nano_folder))
    calibration = Calibration(prompts=("ab", "c", "d"), prompt_count=3, num_inference_steps=2)
    whole = load_or_draw(source, calibration, silent, tmp_path / "whole", "cpu")
    interrupt = Events("calibrating", lambda event: event.subject == "unet" and event.done == 2 * 2 + 1)  # third prompt
    with pytest.raises(KeyboardInterrupt):
        load_or_draw(source, calibration, interrupt, tmp_path / "cut", "cpu")
    files = sorted((tmp_path / "cut").rglob("*.safetensors"))
    assert len(files) == 2
    files[1].write_bytes(files[1].read_bytes()[:-40])  # damaged: drawn again
    times = [file.stat().st_mtime_ns for file in files]
    resumed = load_or_draw(source, calibration, silent, tmp_path / "cut", "cpu")
    assert files[0].stat().st_mtime_ns == times[0] and files[1].stat().st_mtime_ns != times[1]
    assert torch.equal(resumed.points, whole.points) and torch.equal(resumed.ends, whole.ends)


def test_batches_depend_on_seed_and_number_alone(pool: Pool) -> None:
    batches = [draw_batch(pool, 4, 0.5, *which, CPU) for which in ((0, 5), (0, 5), (0, 6), (1, 5), (2**32, 5))]
    assert torch.equal(batches[0].sample, batches[1].sample)
    assert torch.equal(batches[0].timestep, batches[1].timestep)
    assert len({float(batch.sample.sum()) for batch in batches}) == 4


def test_batches_hold_trajectories_and_noisy_ends(pool: Pool) -> None:
    drawn = draw_batch(pool, 64, 1.0, 0, 0, CPU)
    places = {float(timestep): place for place, timestep in enumerate(pool.timesteps)}
    seen = set()
    for sample, timestep in zip(drawn.sample, drawn.timestep, strict=True):
        place = places[float(timestep)]
        owners = [prompt for prompt in range(2) if torch.equal(sample, pool.points[prompt, place].float())]
        assert owners
        seen |= {(owner, place) for owner in owners}
    assert len(seen) == 6  # 64 draws of 6 points: one is missed once in 10^4 seeds, and this seed is fixed
    noisy = draw_batch(pool, 512, 0.0, 0, 1, CPU)
    late = noisy.timestep > 800
    signal = pool.alphas[noisy.timestep.long()][late].view(-1, 1, 1, 1)
    noise = [
        (noisy.sample[late] - signal.sqrt() * end.float()) / (1 - signal).sqrt() for end in pool.ends
    ]  # fmt: skip
    nearest = torch.stack([(each.flatten(1).var(1) - 1).abs() for each in noise]).min(0).values
    # A variance of 256 normal values has a standard error of sqrt(2 / 256) = 0.09.
    assert float(nearest.mean()) < 0.09
    assert len(noisy.timestep.unique()) > 300


def test_prompts_are_apart_from_those_of_evaluations() -> None:
    for model, listed in (("tiny-sd", default_prompts(True).prompts), ("sd15", GENERAL)):
        chosen = training_prompts(open_source(model), 200)
        assert len(set(chosen.prompts)) == 200 and not {*chosen.prompts} & {*listed}
