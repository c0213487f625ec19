"""Input pictures, built-in and the user's; black pictures, and VAEs that overflow float16."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny_parts import tiny_vae

from sdcompress.backends.black_pictures import DecoderGuard, to_pixels, why_black
from sdcompress.calibration.input_pictures import (
    PictureRequest,
    built_in,
    check_steps,
    describe_pictures,
    fewest_steps,
    find_files,
    make_pictures,
)
from sdcompress.errors import UserError
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import load_recipe
from sdcompress.sources.opening import open_source

INPAINT, TEXT = "StableDiffusionInpaintPipeline", "StableDiffusionPipeline"


def test_built_in_pictures_are_the_same_for_the_same_seed() -> None:
    first, again, other = (np.asarray(built_in("image", seed, (48, 64))) for seed in (3, 3, 4))
    assert first.shape == (48, 64, 3) and (first == again).all() and (first != other).any()
    mask = np.asarray(built_in("mask_image", 3, (48, 64)))
    assert mask[24, 32] == 255 and mask[0, 0] == 0
    edges = np.asarray(built_in("control_image", 3, (48, 64)))
    assert 0.01 < (edges == 255).mean() < 0.5


def test_what_cannot_be_drawn_from(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (100, 40), "red").save(picture)
    for image, mask, pipeline_class, says in (
        (picture, None, TEXT, "draws from the prompt alone"),
        (None, picture, INPAINT, "give that picture with --image"),
        (picture, picture, "StableDiffusionImg2ImgPipeline", "takes no mask"),
        (tmp_path / "no.png", None, INPAINT, "no such file"),
        (Path(__file__), None, INPAINT, "is no picture"),
    ):
        with pytest.raises(UserError, match=says):
            find_files(image, mask, pipeline_class)
    files = find_files(picture, None, INPAINT)
    said = describe_pictures(files, INPAINT)
    assert len(said["image"][0]["sha256"]) == 64 and "ellipse" in said["mask_image"]
    pipeline = type(INPAINT, (), {"components": {}, "default_sample_size": 8, "vae_scale_factor": 8})()
    made = make_pictures(pipeline, PictureRequest(0, {"image": str(picture)}), {"height": 32})
    assert made["image"].size == made["mask_image"].size == (64, 32)


def test_too_few_steps_for_the_strength() -> None:
    refiner = "StableDiffusionXLImg2ImgPipeline"
    assert fewest_steps(refiner, 0.3) == 4 and fewest_steps(TEXT, None) == 1
    with pytest.raises(UserError, match="--steps 4 or more"):
        check_steps(refiner, 2, 0.3)


@pytest.fixture
def vae():
    import torch

    torch.manual_seed(0)
    return tiny_vae().eval()


def test_a_vae_that_overflows_float16_decodes_again(vae) -> None:
    import torch

    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(1e6)  # what it gives is far above 65504; a normalization follows
        latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        vae.decoder.conv_in.weight.clamp_(-6e4, 6e4)
        vae.half()
        stock = vae.decode(latents.half(), return_dict=False)[0]
        assert not torch.isfinite(stock).all()
        guard = DecoderGuard(SimpleNamespace(components={"vae": vae}))
        for _ in range(2):
            sample = vae.decode(latents.half(), return_dict=False)[0]
            assert torch.isfinite(sample).all() and guard.upcast == "float32" and vae.dtype == torch.float16
        vae.decode(latents.half() * float("nan"), return_dict=False)
    assert guard.latents_finite is False
    _, seen = to_pixels(np.full((8, 8, 3), np.nan))
    assert "latents are not finite" in why_black(seen, False, guard)
    assert why_black({"flat": False, "not_finite": False}, False, guard) is None


def test_sdxls_vae_stays_in_float32_in_an_fp16_graph() -> None:
    for model, dtype in (("sdxl", "F32"), ("sd15", "F16")):
        planned = make_plan(load_recipe("onnx-fp16"), open_source(model))
        assert {tensor.dtype for tensor in planned.after("vae").tensors.values()} == {dtype}
        assert {tensor.dtype for tensor in planned.after("unet").tensors.values()} == {"F16"}
    assert {t.dtype for t in make_plan(load_recipe("fp16"), open_source("sdxl")).after("vae").tensors.values()} == {
        "F16"
    }


def test_a_quantized_vae_survives_being_moved_to_float32(vae) -> None:
    import torch

    from sdcompress.backends.torch.modules import QuantizedConv2d, replace_layers
    from sdcompress.backends.torch.quantizers import formats_of

    layers = {name: "int8" for name, module in vae.named_modules() if isinstance(module, torch.nn.Conv2d)}
    replace_layers(vae, formats_of(layers))
    for module in vae.modules():
        if isinstance(module, QuantizedConv2d):
            module.codes.fill_(1)
            module.scale.fill_(2**-10)  # exact in float16
    latents = torch.ones(1, 4, 4, 4)
    with torch.no_grad():
        vae.half()
        vae.to(dtype=torch.float32)  # as SDXL's pipeline does before it decodes
        assert {tensor.dtype for tensor in vae.buffers()} == {torch.int8, torch.float32}
        assert torch.isfinite(vae.decode(latents)[0]).all()
        vae.to(dtype=torch.float16)
        assert vae.decode(latents.half())[0].dtype == torch.float16
