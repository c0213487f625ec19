"""Linear layers in 8-bit integers: exact sums, the bound of rounding, and the way through plan, files and loaders."""

import json

import pytest
import torch
from torch import nn

from sdcompress.backends.open_pipeline import open_pipeline
from sdcompress.backends.torch import integer_linear as module
from sdcompress.backends.torch.integer_linear import integer_linear
from sdcompress.backends.torch.modules import QuantizedLinear, replace_layers
from sdcompress.errors import ArtifactError, RecipeError
from sdcompress.execution.execute import execute
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import parse_recipe
from sdcompress.quant.registry import from_label
from sdcompress.sources.opening import open_source

RECIPE = """
schema_version: 1
description: 8-bit integers.
components:
  unet:
    - quantize: {format: int8, activations: int8, activations_exclude: [time_embedding]}
  text_encoder:
    - quantize: {format: int8, activations: int8}
"""


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parts(out, columns):
    tensor = from_label("int8").quantize(random(out, columns, seed=1))
    return tensor.codes, tensor.scale, random(out, seed=2)


def reference(x, codes, scale, bias):
    """One number at a time in Python's integers."""
    rows = []
    for token in x.reshape(-1, x.shape[-1]).tolist():
        step = torch.tensor(max(map(abs, token))).clamp_min(1e-12) / 127
        rounded = [int(value) for value in (torch.tensor(token) / step).round()]
        sums = [sum(a * b for a, b in zip(rounded, row, strict=True)) for row in codes.tolist()]
        rows.append([float(total * step * s + b) for total, s, b in zip(sums, scale, bias, strict=True)])
    return torch.tensor(rows).view(*x.shape[:-1], -1)


@pytest.mark.parametrize("shape", [(2, 5, 24), (3, 24), (24,), (1, 33, 24)])
def test_like_a_slow_reference(shape):
    codes, scale, bias = parts(10, 24)
    x = random(*shape)
    # Sums are exact; two products and a sum in float32 each round by at most 2^-24 of the largest output.
    want = reference(x, codes, scale, bias)
    assert torch.allclose(integer_linear(x, codes, scale, bias), want, rtol=1e-6, atol=4e-7 * float(want.abs().max()))


def test_pieces_are_the_whole(monkeypatch):
    codes, scale, bias = parts(64, 48)
    x = random(100, 48)
    whole = integer_linear(x, codes, scale, bias)
    monkeypatch.setattr(module, "PIECE", 64 * 32)
    assert torch.equal(integer_linear(x, codes, scale, bias), whole)


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33])
def test_rows_that_fill_up_change_no_sum(count):
    """cuBLAS's kernel takes 17 rows or more; on a CPU the same function computes any number."""
    generator = torch.Generator().manual_seed(0)
    x, codes = (torch.randint(-127, 128, (n, 24), dtype=torch.int8, generator=generator) for n in (count, 16))
    assert torch.equal(module.padded_sums(x, codes).long(), x.long() @ codes.long().T)


def test_within_the_bound_of_rounding():
    """|y - W'x| <= s_x / 2 sum|w'|: a value of the input moves by half a step at most."""
    codes, scale, _ = parts(32, 640)
    x, weight = random(50, 640), codes.float() * scale.float().unsqueeze(1)
    step = x.abs().amax(1, keepdim=True) / 127
    error = (integer_linear(x, codes, scale, None) - x @ weight.T).abs()
    # Beside the bound: float32 sums of 640 products.
    assert bool((error <= step / 2 * weight.abs().sum(1) + 640 * 2**-23 * x.abs().max() * weight.abs().max()).all())


def test_tokens_of_zeros_and_the_type_of_the_input():
    codes, scale, bias = parts(8, 16)
    output = integer_linear(torch.zeros(2, 16, dtype=torch.bfloat16), codes, scale, bias)
    assert output.dtype == torch.bfloat16 and torch.equal(output[0], bias.to(torch.bfloat16))


def test_compiled():
    layer = nn.Linear(48, 64)
    tensor = from_label("int8").quantize(layer.weight.detach())
    model = nn.Sequential(layer)
    replace_layers(model, {"0": from_label("int8")}, ["0"])
    model[0].codes.copy_(tensor.codes), model[0].scale.copy_(tensor.scale)
    x = random(20, 48)
    with torch.no_grad():
        want = model(x)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    assert torch.allclose(compiled, want, rtol=1e-5, atol=1e-6)  # the same sums, scaled in another order


def test_a_layer_that_cannot_is_refused():
    with pytest.raises(ArtifactError, match="0 is in int8/16, whose inputs cannot be rounded"):
        replace_layers(nn.Sequential(nn.Linear(32, 32)), {"0": from_label("int8/16")}, ["0"])


def test_from_recipe_to_pipeline(nano_folder, tmp_path):
    plan = make_plan(parse_recipe(RECIPE, "r"), open_source(str(nano_folder)))
    out = tmp_path / "out"
    manifest = execute(plan, out)
    config = json.loads((out / "unet" / "config.json").read_text())["quantization_config"]
    rounded = config["dynamic_activations"]
    assert rounded and not any(name.startswith("time_embedding") for name in rounded)
    layers = manifest.to_json()["components"]["unet"]["layers"]
    assert {name for name, entry in layers.items() if entry.get("activations")} == set(rounded)

    unet = open_pipeline(str(out), device="cpu", dtype="float32").unet
    made = {name for name, one in unet.named_modules() if isinstance(one, QuantizedLinear) and one.rounds_input}
    assert made == set(rounded)
    unet.save_pretrained(tmp_path / "again")
    again = type(unet).from_pretrained(tmp_path / "again")
    assert {name for name, one in again.named_modules() if getattr(one, "rounds_input", False)} == made
    inputs = {"sample": random(2, 4, 8, 8), "timestep": 3, "encoder_hidden_states": random(2, 16, 32)}
    with torch.no_grad():
        assert torch.equal(again(**inputs).sample, unet(**inputs).sample)


def test_excludes_that_match_nothing_are_errors(nano_folder):
    text = RECIPE.replace("time_embedding", "conv_in")
    with pytest.raises(RecipeError, match="activations_exclude: 'conv_in' matches no layer"):
        make_plan(parse_recipe(text, "r"), open_source(str(nano_folder)))
