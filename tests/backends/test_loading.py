"""Who can open what: stock diffusers, stock diffusers with bitsandbytes, and both after `import sdcompress`."""

import subprocess
import sys

import pytest
import torch

from benchmarks.reload_check import dequantized, output_of
from sdcompress import load_recipe, make_plan, open_pipeline, open_source
from sdcompress.backends.torch.loading import choose_device, choose_dtype
from sdcompress.backends.torch.modules import QuantizedLayer, replace_layers
from sdcompress.backends.torch.packaging import layer_formats
from sdcompress.errors import ArtifactError, UserError
from sdcompress.execute import execute
from sdcompress.quant.int8 import Int8
from sdcompress.recipe import parse_recipe

PRUNED = """
schema_version: 1
description: T
components: {unet: [{prune: {drop_mid_block: true, layers_per_block: 1}}]}
"""


@pytest.fixture(scope="module")
def artifact(nano_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")

    def make(name):
        if not (folder / name).exists():
            recipe = parse_recipe(PRUNED, "r") if name == "pruned" else load_recipe(name)
            execute(make_plan(recipe, open_source(str(nano_folder))), folder / name)
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
def test_import_sdcompress_is_all_that_int8_needs(first, artifact):
    script = (
        f"{first}\nimport sys\nfrom diffusers import DiffusionPipeline\n"
        "pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])\n"
        "assert type(pipeline.unet.conv_in).__name__ == 'QuantizedConv2d'\n"
        "assert pipeline('ab', num_inference_steps=1, output_type='np').images.shape == (1, 16, 16, 3)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script, str(artifact("int8"))], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("name", ["int8", "nf4-conv", "mixed"])
def test_a_loaded_component_computes_what_its_dequantized_weights_compute(name, artifact):
    pipeline = open_pipeline(artifact(name), device="cpu")
    for part in ("unet", "vae", "text_encoder"):
        module = getattr(pipeline, part)
        formats = layer_formats(open_source(str(artifact(name))).components[part].config)
        if formats is None:
            continue
        with torch.no_grad():
            reference = output_of(part, dequantized(module, artifact(name), part, formats))
            assert torch.equal(output_of(part, module), reference)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_save_pretrained_round_trip(dtype, artifact, tmp_path):
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(artifact("int8"), torch_dtype=dtype)
    pipeline.save_pretrained(tmp_path / "again")
    again = DiffusionPipeline.from_pretrained(tmp_path / "again", torch_dtype=dtype)
    for part in ("unet", "vae", "text_encoder"):
        before, after = getattr(pipeline, part).state_dict(), getattr(again, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert {value.dtype for value in after.values()} == {dtype, torch.int8}


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", ["int8", "nf4", "nf4-conv", "mixed"])
def test_on_cuda_as_on_the_cpu(name, artifact, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    pictures = {}
    for device in ("cpu", "cuda"):
        pipeline = open_pipeline(artifact(name), device=device, dtype="float32")
        generator = torch.Generator("cpu").manual_seed(0)
        pictures[device] = pipeline("ab", num_inference_steps=2, output_type="pt", generator=generator).images.cpu()
    # Float32 sums in another order, and TF32 off: a tenth of one of 256 levels.
    assert float((pictures["cpu"] - pictures["cuda"]).abs().max()) < 0.1 / 255


def test_a_layer_that_is_not_there():
    with pytest.raises(ArtifactError, match="Sequential has no layer 7"):
        replace_layers(torch.nn.Sequential(torch.nn.Linear(2, 2)), {"7": Int8()})


def test_device_and_dtype():
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == torch.float16
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="--device nonsense"):
        choose_device("nonsense")
    with pytest.raises(UserError, match="--dtype int3"):
        choose_dtype("int3", torch.device("cpu"))


def test_folder_that_is_no_pipeline(tmp_path):
    with pytest.raises(ArtifactError, match="is no pipeline"):
        open_pipeline(tmp_path)
