"""GGUF files: read back by the package gguf and by diffusers, and computed with there."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from listeners import interrupt_writing
from tiny_parts import tiny_transformer, tiny_unet
from typer.testing import CliRunner

from sdcompress.backends.gguf import convert
from sdcompress.backends.gguf.layouts import layout_of
from sdcompress.backends.gguf.types import BLOCK, CONVOLUTION, ONE_DIMENSION, ROWS, SENSITIVE, TYPES, choose_types
from sdcompress.cli.main import app
from sdcompress.errors import ArtifactError, UserError
from sdcompress.sources.opening import open_source

gguf = pytest.importorskip("gguf")

# The same float32 numbers are multiplied; sums may be taken in another order.
SAME_NUMBERS = 1e-5
# diffusers multiplies scales and codes in float16 and adds the offset there, the package gguf in float32: two roundings
# of 2^-11 on a weight, of which an output of some layers keeps about the size.
FLOAT16_WEIGHTS = 2 * 2.0**-11


def save_alone(model: Any, folder: Path, component: str, pipeline: str) -> Path:
    """A pipeline folder with nothing but this component."""
    model.save_pretrained(folder / component)
    index = {"_class_name": pipeline, component: ["diffusers", type(model).__name__]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"in_channels": 32, "num_layers": 2, "axes_dims_rope": (4, 4, 8), "guidance_embeds": True}
    model = tiny_transformer("FluxTransformer2DModel", **sizes)
    return save_alone(model, tmp_path_factory.mktemp("flux"), "transformer", "FluxPipeline")


@pytest.fixture(scope="module")
def sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32}
    model = tiny_transformer(
        "SD3Transformer2DModel", **sizes, pooled_projection_dim=32, dual_attention_layers=(0, 1), qk_norm="rms_norm"
    )
    return save_alone(model, tmp_path_factory.mktemp("sd3"), "transformer", "StableDiffusion3Pipeline")


def write(folder: Path | str, out: Path, wanted: str = "q8_0", **options: Any) -> dict[str, Any]:
    settings = {"keys": None, "rest": "f16", "keep_sensitive": True, "force": False, **options}
    return convert.write_gguf(open_source(str(folder)), out, wanted=wanted, **settings)


def unpacked(file: Path) -> dict[str, torch.Tensor]:
    """Every tensor in float32, by the package that wrote the file."""
    return {
        tensor.name: torch.from_numpy(
            gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            .reshape(tuple(reversed(tensor.shape.tolist())))
            .copy()
        )
        for tensor in gguf.GGUFReader(str(file)).tensors
    }


def open_with_diffusers(file: Path, folder: Path, class_name: str, component: str) -> Any:
    import diffusers

    return getattr(diffusers, class_name).from_single_file(
        str(file), config=str(folder), subfolder=component, torch_dtype=torch.float32,
        quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32),
    )  # fmt: skip


def reference(folder: Path, component: str, class_name: str, weights: dict[str, torch.Tensor]) -> Any:
    """The original's class with the weights of a file in diffusers' names."""
    import diffusers

    model = getattr(diffusers, class_name).from_pretrained(folder / component)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def flux_output(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return model(
        hidden_states=torch.randn(1, 4, 32, generator=generator),
        encoder_hidden_states=torch.randn(1, 3, 32, generator=generator),
        pooled_projections=torch.randn(1, 32, generator=generator),
        timestep=torch.tensor([0.5]), guidance=torch.tensor([3.5]),
        img_ids=torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]), txt_ids=torch.zeros(3, 3),
    ).sample  # fmt: skip


def sd3_output(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return model(
        hidden_states=torch.randn(1, 4, 8, 8, generator=generator),
        encoder_hidden_states=torch.randn(1, 3, 32, generator=generator),
        pooled_projections=torch.randn(1, 32, generator=generator), timestep=torch.tensor([500.0]),
    ).sample  # fmt: skip


def unet_output(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return model(
        torch.randn(2, 4, 8, 8, generator=generator), 300, torch.randn(2, 5, 32, generator=generator)
    ).sample  # fmt: skip


def check_opens(folder: Path, tmp_path: Path, component: str, class_name: str, output: Any, wanted: str) -> None:
    """Both layouts give diffusers the same numbers, and they are those that the package gguf unpacks."""
    got = {}
    for keys in ("original", "diffusers"):
        file = tmp_path / f"{keys}.gguf"
        write(folder, file, wanted, keys=keys, keep_sensitive=False)
        with torch.no_grad():
            got[keys] = output(open_with_diffusers(file, folder, class_name, component))
    with torch.no_grad():
        expected = output(reference(folder, component, class_name, unpacked(tmp_path / "diffusers.gguf")))
    assert_near(got["original"], got["diffusers"], SAME_NUMBERS)
    assert_near(got["diffusers"], expected, FLOAT16_WEIGHTS)


def assert_near(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Their distance over the expected one's length."""
    assert float((got - expected).norm() / expected.norm()) <= tolerance


@pytest.mark.parametrize("wanted", TYPES)
def test_diffusers_opens_a_unet_in_every_type(wanted: str, nano_folder: Path, tmp_path: Path) -> None:
    check_opens(nano_folder, tmp_path, "unet", "UNet2DConditionModel", unet_output, wanted)


@pytest.mark.parametrize("wanted", ["q8_0", "q4_0"])
def test_diffusers_opens_sd3(wanted: str, sd3_folder: Path, tmp_path: Path) -> None:
    check_opens(sd3_folder, tmp_path, "transformer", "SD3Transformer2DModel", sd3_output, wanted)


@pytest.mark.parametrize("wanted", ["q8_0", "q4_0"])
def test_diffusers_opens_flux(wanted: str, flux_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.loaders import single_file_model, single_file_utils

    # diffusers' converter knows FLUX's real width alone; here is the same one for two heads of 16.
    name = "convert_flux_transformer_checkpoint_to_diffusers"
    text = inspect.getsource(getattr(single_file_utils, name))
    assert "inner_dim = 3072" in text
    space = dict(vars(single_file_utils))
    exec(text.replace("inner_dim = 3072", "inner_dim = 32"), space)
    classes = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
    monkeypatch.setitem(classes["FluxTransformer2DModel"], "checkpoint_mapping_fn", space[name])
    check_opens(flux_folder, tmp_path, "transformer", "FluxTransformer2DModel", flux_output, wanted)


@pytest.mark.parametrize("model", ["sd15", "sd21", "sdxl", "sdxl-refiner"])
def test_published_unet_names_are_those_diffusers_converts(model: str) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    spec = open_source(model).components["unet"]
    tensors = layout_of(spec, None).tensors
    # The converter only moves values, so a tensor's own name can stand for it.
    converted = convert_ldm_unet_checkpoint({name: rows[0].tensor for name, rows in tensors.items()}, dict(spec.config))
    assert converted == {name: name for name in spec.tensors}


@pytest.mark.parametrize(("model", "converter"), [("flux-dev", "flux"), ("sd3-medium", "sd3")])
def test_published_transformer_names_are_those_diffusers_converts(model: str, converter: str) -> None:
    from diffusers.loaders import single_file_utils

    spec = open_source(model).components["transformer"]
    layout = layout_of(spec, None)
    stored = choose_types(spec, layout, "q4_0", "f16", keep_sensitive=True)
    convert_names = getattr(single_file_utils, f"convert_{converter}_transformer_checkpoint_to_diffusers")
    converted = convert_names({each.name: torch.empty(each.shape, device="meta") for each in stored})
    assert {name: tuple(value.shape) for name, value in converted.items()} == {
        name: tensor.shape for name, tensor in spec.tensors.items()
    }
    assert sum(each.parameters for each in stored) == spec.parameters


def test_facts_and_file_say_the_same(nano_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "nano.gguf"
    facts = write(nano_folder, file, "q4_0")
    reader = gguf.GGUFReader(str(file))
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in reader.tensors}
    assert types == {name: tensor["type"] for name, tensor in facts["tensors"].items()}
    data_bytes = sum(tensor.n_bytes for tensor in reader.tensors)
    source = open_source(str(nano_folder)).components["unet"]
    assert facts["parameters"] == source.parameters == sum(facts["parameters_by_type"].values())
    assert facts["bits_per_weight"] == 8 * data_bytes / source.parameters
    assert facts["size_bytes"] == file.stat().st_size
    assert reader.get_field("general.architecture").contents() == "sd1"
    assert json.loads(reader.get_field("sdcompress.config").contents())["block_out_channels"] == [32, 64]
    assert json.loads(convert.facts_file(file).read_text()) == facts
    again = tmp_path / "again.gguf"
    write(nano_folder, again, "q4_0")
    assert again.read_bytes() == file.read_bytes()


def test_what_cannot_be_in_blocks_is_named(nano_folder: Path) -> None:
    spec = open_source(str(nano_folder)).components["unet"]
    stored = {each.rows[0].tensor: each for each in choose_types(spec, layout_of(spec, None), "q4_0", "f16", True)}
    assert stored["mid_block.resnets.0.conv1.weight"].reason == CONVOLUTION
    assert stored["mid_block.resnets.0.conv1.weight"].type == "f16"
    assert stored["mid_block.resnets.0.conv1.bias"].reason == ONE_DIMENSION
    assert stored["time_embedding.linear_1.weight"].reason == SENSITIVE
    attention = stored["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
    assert (attention.type, attention.reason) == ("q4_0", None)
    assert attention.size_bytes == 64 * 64 // BLOCK * 18  # 16 bytes of codes and a 16-bit scale for 32 weights


def test_a_narrow_row_stays_in_16_bits(tmp_path: Path) -> None:
    unet = tiny_unet(
        block_out_channels=(16,), down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=24,
    )  # fmt: skip
    facts = write(save_alone(unet, tmp_path / "narrow", "unet", "StableDiffusionPipeline"), tmp_path / "narrow.gguf")
    narrow = facts["tensors"]["model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"]
    assert narrow["type"] == "f16" and narrow["reason"] == ROWS


def test_numbers_float16_cannot_hold_are_an_error(nano_copy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = nano_copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_in.weight"][0, 0, 0, 0] = 1e5
    save_file(tensors, weights, {"format": "pt"})
    out = tmp_path / "out" / "large.gguf"
    with pytest.raises(UserError, match=r"unet\.conv_in\.weight: has a 1e\+05.*--rest f32"):
        write(nano_copy, out)
    assert not out.parent.exists()
    write(nano_copy, out, rest="f32")
    assert unpacked(out)["model.diffusion_model.input_blocks.0.0.weight"][0, 0, 0, 0] == np.float32(1e5)


def test_what_is_in_the_way_is_refused(nano_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.gguf"):
        write(nano_folder, tmp_path / "nano.bin")
    out = tmp_path / "nano.gguf"
    out.write_bytes(b"mine")
    with pytest.raises(ArtifactError, match="--force"):
        write(nano_folder, out)
    assert out.read_bytes() == b"mine"
    write(nano_folder, out, force=True)
    assert out.read_bytes()[:4] == b"GGUF"


def test_an_interrupted_run_leaves_nothing(nano_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(nano_folder, tmp_path / "new" / "folder" / "nano.gguf", listener=interrupt_writing("unet"))
    assert not any(tmp_path.iterdir())


def test_sources_and_machines_that_cannot_are_refused(
    nano_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = nano_copy / "unet" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(UserError, match=r"quantized already.*convert the original"):
        write(nano_copy, tmp_path / "nano.gguf")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'sdcompress\[gguf\]'"):
        write(nano_copy, tmp_path / "nano.gguf")


def test_the_command_says_what_stayed_in_16_bits(nano_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "nano.gguf"
    result = CliRunner().invoke(app, ["convert", str(nano_folder), "--to", "gguf", "-o", str(out), "--type", "q5_0"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    assert CONVOLUTION in result.stderr
    assert "bits per weight" in result.stderr
    assert f'config="{nano_folder}"' in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "ggml"], "ggml: is no format that can be written; use gguf or openvino"),
        (["--to", "gguf", "--type", "q4_k"], "type q4_k: use one of f16"),
        (["--to", "openvino", "--type", "q8_0"], "type: is for gguf"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: list[str], message: str, nano_folder: Path) -> None:
    result = CliRunner().invoke(app, ["convert", str(nano_folder), "-o", "x.gguf", *options])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
