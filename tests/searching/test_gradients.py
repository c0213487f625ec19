from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_pipelines import FAMILIES

from sdcompress.backends.torch.picture_gradients import Drawn, gather_gradients
from sdcompress.calibration.settings import Calibration
from sdcompress.searching.gradient_folder import GradientFolder
from sdcompress.searching.space import Space, list_choices
from sdcompress.sources.opening import open_source

WANTED = {
    "text_encoder": ["text_model.encoder.layers.0.mlp.fc1"],
    "unet": ["conv_in", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"],
    "vae": ["decoder.conv_out", "encoder.conv_in"],
}
CALIBRATION = Calibration(prompts=("a red house", "a blue tree"), num_inference_steps=2, guidance_scale=3.0)


@pytest.fixture(scope="module")
def drawn(nano_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    store = GradientFolder(tmp_path_factory.mktemp("gradients"))
    gather_gradients(open_source(str(nano_folder)), WANTED, CALIBRATION, store, range(2), device="cpu")
    found = store.load(0)
    assert found is not None
    return found


def test_rows_are_those_of_plain_autograd(drawn: Drawn, nano_folder: Path) -> None:
    """The stock pipeline, without checkpoints and with the fused attention, gives the same gradients."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(nano_folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(2**31)  # calibration's first seed
    call = StableDiffusionPipeline.__call__.__wrapped__
    picture = call(
        pipeline, "a red house", num_inference_steps=2, guidance_scale=3.0, generator=generator, output_type="pt"
    ).images
    probe = torch.randn(picture.shape, generator=torch.Generator().manual_seed(2**20))
    (picture * probe).sum().backward()
    for component, layers in drawn.rows.items():
        for layer, found in layers.items():
            module = getattr(pipeline, component).get_submodule(layer)
            gradient = module.weight.grad.flatten(1)
            bias = torch.zeros(len(gradient)) if module.bias is None else module.bias.grad
            expected = torch.stack([gradient.square().sum(1), (gradient * module.weight.flatten(1)).sum(1), bias])
            # Two orders of the same float32 sums: relative 1e-3 of the largest row leaves two decimals.
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3 * float(other.abs().max()))
    assert drawn.pixels == picture.numel()


def test_layers_that_no_picture_needs_are_left_out(drawn: Drawn) -> None:
    assert set(drawn.rows["vae"]) == {"decoder.conv_out"}
    assert set(drawn.rows) == {"text_encoder", "unet", "vae"}


def test_what_is_stored_is_not_drawn_again(nano_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, store = open_source(str(nano_folder)), GradientFolder(tmp_path)
    gather_gradients(source, WANTED, CALIBRATION, store, [1], device="cpu")
    alone = store.load(1)
    told: list[float] = []
    gather_gradients(source, WANTED, CALIBRATION, store, [0, 1], lambda event: told.append(event.done), "cpu")
    assert told == [1, 2] and alone is not None
    both, first = store.all([0, 1]), store.load(0)
    assert first is not None
    for layer, rows in alone.rows["unet"].items():
        assert torch.equal(both.rows["unet"][layer], torch.stack([first.rows["unet"][layer], rows]))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_differentiated(family: str, family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Every layer that a search chooses a format for has gradients, whatever the pipeline is."""
    source, store = open_source(str(family_folder(family))), GradientFolder(tmp_path)
    measured = [each for each in list_choices(source, Space()) if each.measured]
    wanted: dict[str, list[str]] = {}
    for each in measured:
        wanted.setdefault(each.component, []).append(each.layer.name)
    calibration = Calibration(prompts=("a red cat",), num_inference_steps=4, height=32, width=32)
    gather_gradients(source, wanted, calibration, store, [0], device="cpu")
    found = store.load(0)
    assert found is not None
    drawn = {(component, layer) for component, layers in found.rows.items() for layer in layers}
    missing = {(each.component, each.layer.name) for each in measured} - drawn
    # SDXL takes the last hidden state but one, so no picture needs the last layer of its text encoders.
    assert all(component.startswith("text_encoder") and "layers.1." in layer for component, layer in missing)
    assert not missing or family.startswith("sdxl")
