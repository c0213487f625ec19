"""Who can open what: stock diffusers, stock diffusers with bitsandbytes, and both after `import sdcompress`."""

import subprocess
import sys

import pytest
import torch
from short_recipes import VARIED
from torch import nn

from benchmarks.reload_check import dequantized, output_of
from sdcompress import compress, load_recipe, open_pipeline, open_source
from sdcompress.backends.torch.loading import choose_device, choose_dtype
from sdcompress.backends.torch.modules import QuantizedLayer, replace_layers
from sdcompress.backends.torch.packaging import layer_formats
from sdcompress.backends.torch.quantizers import formats_of
from sdcompress.errors import ArtifactError, UserError
from sdcompress.planning.recipe import parse_recipe
from sdcompress.quant.registry import from_label

PRUNED = """
schema_version: 1
description: T
components: {unet: [{prune: {drop_mid_block: true, layers_per_block: 1}}]}
"""

MADE_HERE = {"pruned": PRUNED, "varied": VARIED, "unrotated": VARIED.replace(", hadamard: true", "")}


@pytest.fixture(scope="module")
def artifact(nano_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")

    def make(name):
        if not (folder / name).exists():
            recipe = parse_recipe(MADE_HERE[name], "r") if name in MADE_HERE else load_recipe(name)
            compress(nano_folder, recipe, folder / name)
        return folder / name

    return make


@pytest.mark.parametrize("name", ["fp16", "pruned"])
def test_stock_diffusers_opens_it_without_sdcompress(name, artifact):
    script = (
        "import sys; sys.modules['sdcompress'] = None\n"
        "from diffusers import DiffusionPipeline\n"
        "pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])\n"
        "assert pipeline('ab', num_inference_steps=1, output_type='np').images.shape == (1, 16, 16, 3)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script, str(artifact(name))], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("first", ["import sdcompress, diffusers", "import diffusers, transformers, sdcompress"])
def test_import_sdcompress_is_all_that_own_formats_need(first, artifact):
    script = (
        f"{first}\nimport sys\nfrom diffusers import DiffusionPipeline\n"
        "pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])\n"
        "assert type(pipeline.unet.conv_in).__name__ == 'QuantizedConv2d'\n"
        "assert pipeline('ab', num_inference_steps=1, output_type='np').images.shape == (1, 16, 16, 3)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script, str(artifact("varied"))], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("name", ["int8", "nf4-conv", "mixed", "varied"])
def test_a_loaded_component_computes_what_its_dequantized_weights_compute(name, artifact):
    pipeline = open_pipeline(artifact(name), device="cpu")
    for part in ("unet", "vae", "text_encoder"):
        module = getattr(pipeline, part)
        formats = layer_formats(open_source(str(artifact(name))).components[part].config)
        if formats is None:
            continue
        with torch.no_grad():
            reference = output_of(part, dequantized(module, artifact(name), part, formats))
            difference = output_of(part, module) - reference
            # Convolutions run channels_last and rotated inputs are sums, so float32 rounds elsewhere: 2^-24 each time,
            # through some dozens of layers.
            assert float(difference.norm() / reference.norm()) < 100 * 2.0**-24


@pytest.mark.parametrize("name", ["int8", "varied"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_save_pretrained_round_trip(name, dtype, artifact, tmp_path):
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(artifact(name), torch_dtype=dtype)
    pipeline.save_pretrained(tmp_path / "again")
    again = DiffusionPipeline.from_pretrained(tmp_path / "again", torch_dtype=dtype)
    for part in ("unet", "vae", "text_encoder"):
        before, after = getattr(pipeline, part).state_dict(), getattr(again, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert {value.dtype for value in after.values()} <= {dtype, torch.int8, torch.uint8}
        if dtype == torch.float16:  # in which scales are stored: the same codes and scales as in the artifact
            stored = open_source(str(artifact(name))).components[part].tensors
            saved = open_source(str(tmp_path / "again")).components[part].tensors
            packed = [name for name in stored if name.rpartition(".")[2] not in ("weight", "bias")]
            assert packed and all(saved[name].dtype == stored[name].dtype for name in packed)
            assert all(saved[name].shape == stored[name].shape for name in packed)


@pytest.mark.parametrize("name", ["int8", "varied"])
def test_to_another_precision(name, artifact):
    from diffusers import DiffusionPipeline

    there = DiffusionPipeline.from_pretrained(artifact(name), torch_dtype=torch.float32).to(torch.bfloat16)
    straight = DiffusionPipeline.from_pretrained(artifact(name), torch_dtype=torch.bfloat16)
    for part in ("unet", "vae", "text_encoder"):
        cast, loaded = getattr(there, part).state_dict(), getattr(straight, part).state_dict()
        assert all(cast[name].dtype == loaded[name].dtype and torch.equal(cast[name], loaded[name]) for name in cast)


@pytest.mark.parametrize("buffers", [False, True])
def test_offloading_hooks(buffers, artifact):
    """What enable_model_cpu_offload and enable_sequential_cpu_offload put on a GPU, with the CPU in its place."""
    from accelerate import cpu_offload, cpu_offload_with_hook

    unet = open_pipeline(artifact("varied"), device="cpu").unet
    with torch.no_grad():
        want = output_of("unet", unet)
        cpu_offload(unet, torch.device("cpu"), offload_buffers=buffers)
        assert next(iter(unet.conv_in.stored.values())).is_meta == buffers
        assert torch.equal(output_of("unet", unet), want)
        unet = open_pipeline(artifact("varied"), device="cpu").unet
        unet, hook = cpu_offload_with_hook(unet, torch.device("cpu"))
        assert torch.equal(output_of("unet", unet), want)
        hook.offload()


def test_compiled_unet_is_one_graph(artifact):
    unet = open_pipeline(artifact("unrotated"), device="cpu").unet
    with torch.no_grad():
        want = output_of("unet", unet)
        compiled = torch.compile(unet, backend="eager", fullgraph=True)
        generator = torch.Generator().manual_seed(0)
        states = torch.randn((2, 8, unet.config.cross_attention_dim), generator=generator)
        sample = torch.randn((2, unet.config.in_channels, 16, 16), generator=generator)
        got = compiled(sample, torch.tensor(500), encoder_hidden_states=states).sample
    assert float((got - want).norm() / want.norm()) < 100 * 2.0**-24  # as above


def test_formats_of_a_newer_version():
    for label in ("int4/64+colour3", "int99"):
        with pytest.raises(ArtifactError, match=r"unknown to this version of sdcompress"):
            formats_of({"conv_in": label})


def test_stock_bitsandbytes_layout(artifact, monkeypatch):
    """diffusers' own loader refuses a CPU; with that check taken away it opens our file and has the same weights."""
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (pip install 'sdcompress[bnb]')")
    from diffusers import UNet2DConditionModel
    from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer

    monkeypatch.setattr(BnB4BitDiffusersQuantizer, "validate_environment", lambda self, *a, **k: None)
    monkeypatch.setattr(BnB4BitDiffusersQuantizer, "update_device_map", lambda self, device_map: {"": "cpu"})
    stock = UNet2DConditionModel.from_pretrained(artifact("nf4") / "unet", torch_dtype=torch.float32)
    ours = open_pipeline(artifact("nf4"), device="cpu").unet
    layers = {name: module for name, module in stock.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    mine = {name: module for name, module in ours.named_modules() if isinstance(module, QuantizedLayer)}
    assert layers.keys() == mine.keys() and len(layers) > 20
    for name, module in layers.items():
        state = module.weight.quant_state
        state.dtype = torch.float32
        if state.shape[-1] % state.blocksize == 0:  # elsewhere its CPU kernel is wrong (0.50.2 on AVX512)
            with torch.compiler.set_stance("force_eager"):
                weight = bnb.functional.dequantize_4bit(module.weight.data, state)
            assert torch.equal(weight, mine[name].dequantized(torch.float32)), name
        assert torch.equal(state.absmax, mine[name].scale) and torch.equal(module.weight.data, mine[name].codes)


def test_a_layer_that_is_not_there():
    with pytest.raises(ArtifactError, match="Sequential has no layer 7"):
        replace_layers(nn.Sequential(nn.Linear(2, 2)), {"7": from_label("int8")})


def test_device_and_dtype():
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == torch.float16
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="--device nonsense"):
        choose_device("nonsense")
    with pytest.raises(UserError, match="--dtype int3"):
        choose_dtype("int3", torch.device("cpu"))


def test_folder_that_is_no_pipeline(tmp_path):
    with pytest.raises(ArtifactError, match="is not a pipeline"):
        open_pipeline(tmp_path)
