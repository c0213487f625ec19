"""Observing activations: what is seen, that seeing changes nothing, and that one component is in memory at a time."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from listeners import Events

from sdcompress import open_source
from sdcompress.backends.torch import trajectories
from sdcompress.backends.torch.observers import HistogramObserver, Histograms, observe_activations
from sdcompress.backends.torch.source_parts import open_component
from sdcompress.backends.torch.trajectories import CalibrationRun
from sdcompress.calibration.settings import FIRST_SEED, Calibration, WantedHistograms, choose_prompts
from sdcompress.errors import SourceError
from sdcompress.progress import ProgressEvent
from sdcompress.sources.opening import open_folder
from sdcompress.sources.source import Source
from sdcompress.sources.spec import CONVOLUTIONS, layers_of

CALIBRATION = Calibration(prompt_count=2, num_inference_steps=3)
CPU = torch.device("cpu")
INPUT = WantedHistograms()


def everything(source: Source) -> dict[str, dict[str, WantedHistograms]]:
    return {
        part: {
            layer.name: WantedHistograms(output=True)
            for layer in layers_of(source.components[part])
            if layer.kind in CONVOLUTIONS | {"linear"}
        }
        for part in trajectories.COMPONENTS
        if part in source.components
    }


def observe(source: Source, wanted: Any, calibration: Calibration = CALIBRATION) -> Histograms:
    return observe_activations(source, wanted, calibration, device="cpu")


@pytest.fixture(scope="module")
def tiny_sd() -> Source:
    return open_source("tiny-sd")


@pytest.fixture(scope="module")
def observed(tiny_sd: Source) -> Histograms:
    return observe(tiny_sd, everything(tiny_sd))


@pytest.fixture(scope="module")
def nano_xl(family_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SDXL pipeline, saved in float16."""
    from diffusers import StableDiffusionXLPipeline

    folder = tmp_path_factory.mktemp("models") / "nano-xl"
    StableDiffusionXLPipeline.from_pretrained(family_folder("sdxl")).to(torch.float16).save_pretrained(folder)
    return folder


def test_every_layer_is_seen_as_often_as_it_runs(tiny_sd: Source, observed: Histograms) -> None:
    wanted = everything(tiny_sd)
    assert {part: list(layers) for part, layers in observed.items()} == {part: list(w) for part, w in wanted.items()}
    runs = {"text_encoder": 2 * 2, "unet": 2 * 3, "vae": 2}  # prompts x (both branches, steps, once)
    for part, layers in observed.items():
        for name, seen in layers.items():
            assert seen.input.tensors == runs[part], name
            assert seen.output is not None and seen.output.tensors == runs[part] and seen.first_token is None
    # Latents are 16 x 16 x 4, and a step takes both guidance branches in one batch.
    assert observed["unet"]["conv_in"].input.count == 2 * 3 * 2 * 4 * 16 * 16
    assert observed["vae"]["encoder.conv_in"].input.count == 2 * 3 * 64 * 64
    picture = observed["vae"]["encoder.conv_in"].input
    assert -1 <= picture.low < picture.high <= 1


def test_both_guidance_branches_are_seen(tiny_sd: Source, observed: Histograms) -> None:
    """Cross-attention reads the embeddings of the prompts and of no prompt; each alone has other extremes."""
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    run = CalibrationRun(tiny_sd, {"unet": {}}, CALIBRATION, device="cpu")
    texts = run.encode_prompts()
    ends = {
        name: torch.cat([text[name] for text in texts]).aminmax()
        for name in ("prompt_embeds", "negative_prompt_embeds")
    }
    assert ends["prompt_embeds"] != ends["negative_prompt_embeds"]
    both = observed["unet"][layer].input
    assert both.low == min(float(end.min) for end in ends.values())
    assert both.high == max(float(end.max) for end in ends.values())
    unguided = observe(tiny_sd, {"unet": {layer: INPUT}}, CALIBRATION.model_copy(update={"guidance_scale": 1.0}))
    one = unguided["unet"][layer].input
    assert 2 * one.count == both.count
    assert (one.low, one.high) == tuple(float(end) for end in ends["prompt_embeds"])


def test_the_first_token_apart_from_the_others(tiny_sd: Source, observed: Histograms) -> None:
    """Both together are the whole input; the start of text, the same for every prompt, is the larger by far."""
    layer, count = "text_model.encoder.layers.1.mlp.fc2", 2 * 2  # prompts, and what stands for none of each
    seen = observe(tiny_sd, {"text_encoder": {layer: WantedHistograms(first_token=True)}})["text_encoder"][layer]
    whole = observed["text_encoder"][layer].input
    others, first = seen.input, seen.first_token
    assert first is not None and seen.output is None
    assert first.tensors == others.tensors == count
    assert first.count + others.count == whole.count and others.count == 31 * first.count  # of 32 tokens
    assert (min(first.low, others.low), max(first.high, others.high)) == (whole.low, whole.high)


def test_outputs_are_those_of_the_layer(tiny_sd: Source, observed: Histograms) -> None:
    """What leaves conv_in is what its two readers take in; what leaves the decoder is the picture before clamping."""
    made = observed["unet"]["conv_in"].output
    assert (
        made is not None
        and made.count == 2 * 3 * 2 * 16 * 16 * tiny_sd.components["unet"].config["block_out_channels"][0]
    )
    picture = observed["vae"]["decoder.conv_out"].output
    assert picture is not None and picture.count == 2 * 3 * 64 * 64
    encoded = observed["vae"]["encoder.conv_in"].input
    assert encoded.low == max(picture.low, -1) and encoded.high == min(picture.high, 1)


def test_same_seed_same_statistics(tiny_sd: Source, observed: Histograms) -> None:
    wanted = {"unet": {"conv_in": INPUT, "conv_out": INPUT}}
    again = observe(tiny_sd, wanted)["unet"]
    other = observe(tiny_sd, wanted, CALIBRATION.model_copy(update={"seed": 7}))["unet"]
    for name in wanted["unet"]:
        first = observed["unet"][name].input
        same, another = again[name].input, other[name].input
        assert torch.equal(same.counts, first.counts) and same.high == first.high
        assert not torch.equal(another.counts, first.counts)


@pytest.mark.parametrize("model", ["tiny-sd", "nano_xl"])
def test_pictures_are_those_of_the_stock_pipeline(model: str, request: pytest.FixtureRequest) -> None:
    """Bit for bit, though components come one by one, and whether or not every layer is observed."""
    from diffusers import DiffusionPipeline

    source = open_source(model) if model == "tiny-sd" else open_folder(request.getfixturevalue(model))
    size = {"height": 64, "width": 64} if model == "tiny-sd" else {"height": 16, "width": 32}
    calibration = Calibration(prompt_count=2, num_inference_steps=2, **size)
    pictures: dict[str, list[torch.Tensor]] = {}
    for how, wanted in (
        ("observed", everything(source)),
        ("unobserved", {"vae": {"decoder.conv_out": INPUT}}),
    ):
        run = CalibrationRun(source, wanted, calibration, device="cpu", observer=HistogramObserver(wanted))
        pictures[how] = run.decode(run.denoise(run.encode_prompts()))
    pipeline = DiffusionPipeline.from_pretrained(source.path, torch_dtype=torch.float32, safety_checker=None)
    chosen = choose_prompts(calibration, source)
    guidance = {} if chosen.guidance_scale is None else {"guidance_scale": chosen.guidance_scale}
    for index, prompt in enumerate(chosen.prompts):
        generator = torch.Generator().manual_seed(FIRST_SEED + index)
        stock = pipeline(
            prompt, num_inference_steps=2, generator=generator, output_type="pt", **size, **guidance
        ).images  # fmt: skip
        assert torch.equal(pictures["observed"][index], pictures["unobserved"][index])
        assert torch.equal(pictures["observed"][index] / 2 + 0.5, stock)


def test_xl_with_an_encoded_empty_prompt(nano_xl: Path, tmp_path: Path) -> None:
    """Without `force_zeros_for_empty_prompt` the negative embeddings are those of "", as in the stock pipeline."""
    import shutil

    from diffusers import StableDiffusionXLPipeline

    folder = Path(shutil.copytree(nano_xl, tmp_path / "xl"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "force_zeros_for_empty_prompt": False}))
    run = CalibrationRun(open_folder(folder), {"unet": {}}, CALIBRATION, device="cpu")
    texts = run.encode_prompts()
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    for prompt, text in zip(choose_prompts(CALIBRATION, open_folder(folder)).prompts, texts, strict=True):
        stock = dict(zip(names, pipeline.encode_prompt(prompt, device=CPU), strict=True))
        assert stock.keys() == text.keys() and bool(stock["negative_prompt_embeds"].any())
        assert all(torch.equal(stock[name], text[name]) for name in names)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the components opened so far; opening one while another still has its weights is an error."""
    names: list[str] = []
    weights: list[weakref.ref[torch.Tensor]] = []

    def record(source: Source, component: str, device: torch.device) -> Any:
        assert not [weight for weight in weights if weight() is not None]
        model = open_component(source, component, device)
        names.append(component)
        weights.extend(weakref.ref(parameter) for parameter in model.parameters())
        return model

    monkeypatch.setattr(trajectories, "open_component", record)
    yield names


@pytest.mark.parametrize(
    ("wanted", "components"),
    [
        ({}, []),
        ({"unet": {}}, []),
        ({"text_encoder": {"text_model.encoder.layers.0.mlp.fc1": INPUT}}, ["text_encoder"]),
        ({"unet": {"conv_in": INPUT}}, ["text_encoder", "unet"]),
        ({"vae": {"decoder.conv_in": INPUT}}, ["text_encoder", "unet", "vae"]),
    ],
)
def test_one_component_at_a_time_and_only_what_is_needed(
    wanted: Any, components: list[str], opened: list[str], tiny_sd: Source
) -> None:
    assert set(observe(tiny_sd, wanted)) == {part for part, layers in wanted.items() if layers}
    assert opened == components


def test_progress_counts_up_to_its_total(tiny_sd: Source) -> None:
    events = Events()
    wanted = {"unet": {"conv_in": INPUT}, "vae": {"encoder.conv_in": INPUT}}
    observe_activations(tiny_sd, wanted, CALIBRATION, events, "cpu")
    totals = {"text_encoder": 2, "unet": 2 * 3, "vae": 2 * 2}  # two prompts; decoded and encoded
    assert events == [
        ProgressEvent("calibrating", component, done, total, "runs")
        for component, total in totals.items()
        for done in range(1, total + 1)
    ]


def test_interrupted(tiny_sd: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle takes the weights out of memory and the hooks off, and no file is written."""
    monkeypatch.chdir(tmp_path)
    models: list[torch.nn.Module] = []

    def record(*arguments: Any) -> Any:
        models.append(open_component(*arguments))
        return models[-1]

    interrupt = Events(stop=lambda event: event.subject == "unet")
    monkeypatch.setattr(trajectories, "open_component", record)
    with pytest.raises(KeyboardInterrupt):
        observe_activations(tiny_sd, {"unet": {"conv_in": INPUT}}, CALIBRATION, interrupt, "cpu")
    assert len(models) == 2
    assert all(parameter.is_meta for model in models for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for model in models for module in model.modules())
    assert not list(tmp_path.iterdir())


def test_weights_are_those_of_the_files(nano_xl: Path) -> None:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection

    source = open_folder(nano_xl)
    for part, stock_class in (("unet", UNet2DConditionModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        mine = open_component(source, part, CPU).state_dict()
        stock = stock_class.from_pretrained(nano_xl / part, torch_dtype=torch.float32).state_dict()
        assert mine.keys() == stock.keys()
        assert all(torch.equal(mine[name], stock[name]) and mine[name].dtype == torch.float32 for name in stock)


def test_broken_weights_name_the_layer(nano_copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = nano_copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"][0] = torch.nan
    save_file(tensors, file)
    layer = "down_blocks.0.resnets.0.conv1"
    with pytest.raises(SourceError, match=rf"^unet\.{layer}: in its input \d+ of \d+ values are NaN or infinite"):
        observe(
            open_folder(nano_copy),
            {"unet": {layer: INPUT}},
            Calibration(prompt_count=1, num_inference_steps=1),
        )


def test_missing_weights(nano_copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = nano_copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.bias"]
    save_file(tensors, file)
    with pytest.raises(SourceError, match=r"its unet lacks conv_in\.bias"):
        observe(open_folder(nano_copy), {"unet": {"conv_out": INPUT}})


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"unet": {"conv_inn": INPUT}}, r"unet\.conv_inn: is no linear layer or convolution"),
        ({"unet": {"conv_norm_out": INPUT}}, r"unet\.conv_norm_out: is no linear layer or convolution"),
        ({"safety_checker": {"visual_projection": INPUT}}, "safety_checker: has no activation ranges"),
        ({"text_encoder_2": {"x": INPUT}}, "tiny-sd: has no text_encoder_2"),
    ],
)
def test_layers_that_cannot_be_observed(wanted: Any, problem: str, tiny_sd: Source) -> None:
    with pytest.raises(SourceError, match=problem):
        observe(tiny_sd, wanted)


def test_a_layer_that_never_runs(nano_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_nothing(model: Any, *_: Any, **__: Any) -> Any:
        return model.conv_in(torch.zeros(1, 4, 8, 8))

    monkeypatch.setattr(CalibrationRun, "denoise", lambda self, texts: run_within(self, run_nothing))

    def run_within(run: Any, function: Any) -> list[torch.Tensor]:
        with run._opened("unet") as model:
            function(model)
        return []

    with pytest.raises(SourceError, match=r"unet\.conv_out: drawing pictures never runs it"):
        observe(open_folder(nano_copy), {"unet": {"conv_in": INPUT, "conv_out": INPUT}})


def test_pipelines_that_cannot_be_calibrated(tiny_sd: Source) -> None:
    unknown = replace(tiny_sd, model_index=tiny_sd.model_index | {"_class_name": "UniDiffuserPipeline"})
    with pytest.raises(SourceError, match="is a UniDiffuserPipeline; activation ranges can be calibrated"):
        observe(unknown, {"unet": {"conv_in": INPUT}})
    with pytest.raises(SourceError, match="sd15: has no weights here"):
        observe(open_source("sd15"), {"unet": {"conv_in": INPUT}})
