"""T5's `shared`, which is its encoder's `embed_tokens` too: quantized once, stored once, read in both places."""

import copy

import pytest
import torch

from sdcompress.execution.execute import execute
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import parse_recipe
from sdcompress.sources.opening import open_source

IDS = torch.tensor([[3, 9, 40, 1]])


@pytest.fixture(scope="module")
def folder(family_folder):
    return family_folder("pixart")


def made(folder, recipe, out, target="torch"):
    text = f"schema_version: 1\ndescription: T\ntarget: {target}\ncomponents: {recipe}\n"
    plan = make_plan(parse_recipe(text, "r"), open_source(str(folder)))
    execute(plan, out)
    assert dict(open_source(str(out)).components["text_encoder"].tensors) == dict(plan.after("text_encoder").tensors)
    return plan


@pytest.mark.parametrize("fmt", ["int8", "uint4, group_size: 16", "codebook4", "int4, hadamard: true, rank: 2"])
def test_the_table_is_quantized_in_both_places(fmt, folder, tmp_path):
    from transformers import T5EncoderModel

    made(folder, f"{{text_encoder: [{{quantize: {{format: {fmt}}}}}]}}", tmp_path / "out")
    stored = open_source(str(tmp_path / "out")).components["text_encoder"].tensors
    assert "shared.codes" in stored and not any(name.startswith("encoder.embed_tokens") for name in stored)
    model, loading = T5EncoderModel.from_pretrained(tmp_path / "out" / "text_encoder", output_loading_info=True)
    assert not any(loading.values()), loading
    original = T5EncoderModel.from_pretrained(folder / "text_encoder")
    rows = model.encoder.embed_tokens(IDS)
    # A rotated row is turned back as it is looked up, in another order of summation than the whole table.
    torch.testing.assert_close(rows, model.shared.weight[IDS], rtol=1e-5, atol=1e-5)
    assert not torch.equal(rows, original.shared(IDS))
    assert (rows - original.shared(IDS)).norm() < 0.2 * original.shared(IDS).norm()  # 4 bits: some 10 %
    for layer, module in model.named_modules():  # the original with all that the codes stand for in its place
        if type(module).__name__.startswith("Quantized"):
            original.get_submodule(layer).weight.data = module.weight.clone()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS)[0], original(IDS)[0], rtol=1e-4, atol=1e-5)


def test_it_is_copied_cast_and_saved_as_one(folder, tmp_path):
    from transformers import T5EncoderModel

    made(folder, "{text_encoder: [{quantize: {format: int8}}]}", tmp_path / "out")
    model = T5EncoderModel.from_pretrained(tmp_path / "out" / "text_encoder")
    twin = copy.deepcopy(model)
    twin.shared.codes.zero_()
    assert not twin.encoder.embed_tokens(IDS).any() and model.encoder.embed_tokens(IDS).any()
    model.save_pretrained(tmp_path / "again")
    again = T5EncoderModel.from_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(again(IDS)[0], model(IDS)[0])
        assert model.half()(IDS)[0].dtype == torch.float16


def test_a_tie_that_the_class_says():
    """As in transformers 5, which the lock does not have: two modules, and tensor -> the one it is tied to."""
    from torch import nn

    from sdcompress.backends.torch.modules import replace_layers
    from sdcompress.quant.registry import from_label

    model = nn.Module()
    model.shared, model.encoder, model.other = nn.Embedding(64, 4), nn.Module(), nn.Embedding(64, 4)
    model.encoder.embed_tokens = nn.Embedding(64, 4)
    model._tied_weights_keys = model.all_tied_weights_keys = {"encoder.embed_tokens.weight": "shared.weight"}
    replace_layers(model, {"shared": from_label("int8")})
    assert sorted(model.state_dict()) == ["other.weight", "shared.codes", "shared.scale"]
    assert not model._tied_weights_keys and not model.all_tied_weights_keys
    model.shared.codes.fill_(2)
    model.shared.scale.fill_(1)
    assert (model.encoder.embed_tokens(IDS) == 2).all()


@pytest.mark.full  # tracing takes ten seconds
def test_in_onnx_its_rows_are_gathered_as_codes(folder, tmp_path):
    import onnx
    import onnxruntime
    from transformers import T5EncoderModel

    recipe = '{text_encoder: [{quantize: {format: int8, include: [shared]}}], "*": [{cast: {dtype: float32}}]}'
    text = f"schema_version: 1\ndescription: T\ntarget: onnx\ncomponents: {recipe}\n"
    execute(make_plan(parse_recipe(text, "r"), open_source(str(folder))), tmp_path / "onnx")
    file = tmp_path / "onnx" / "text_encoder" / "model.onnx"
    tables = [value for value in onnx.load(file, load_external_data=False).graph.initializer if "shared" in value.name]
    assert onnx.TensorProto.INT8 in [value.data_type for value in tables]
    made(folder, "{text_encoder: [{quantize: {format: int8, include: [shared]}}]}", tmp_path / "torch")
    model = T5EncoderModel.from_pretrained(tmp_path / "torch" / "text_encoder")
    session = onnxruntime.InferenceSession(file)
    given = {"input_ids": IDS.numpy(), "attention_mask": torch.ones_like(IDS).numpy()}
    with torch.no_grad():
        expected = model(IDS, attention_mask=torch.ones_like(IDS))[0]
    output = session.run(None, given)[0]
    torch.testing.assert_close(torch.from_numpy(output), expected, rtol=1e-4, atol=1e-5)  # another order of summation


def test_umt5_ties_it_too():
    from transformers import UMT5Config, UMT5EncoderModel

    from sdcompress.backends.torch.modules import QuantizedEmbedding, replace_layers
    from sdcompress.quant.registry import from_label

    model = UMT5EncoderModel(UMT5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    replace_layers(model, {"shared": from_label("int8")})
    assert isinstance(model.shared, QuantizedEmbedding)
    assert [name for name in model.state_dict() if "embed_tokens" in name] == []
    model.tie_weights()  # loaders call it at the end
    model.shared.codes.fill_(2)
    model.shared.scale.fill_(1)
    assert (model.encoder.embed_tokens(IDS) == 2).all()
