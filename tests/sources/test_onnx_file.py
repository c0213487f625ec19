"""ONNX folders as Sources: exact counts without external data, foreign files, and files that are not whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdcompress.errors import SourceError
from sdcompress.sources.inspect_model import describe
from sdcompress.sources.opening import open_source

onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install 'sdcompress[onnx]')")

FLOAT, HALF, INT8, INT64, UINT4 = 1, 10, 3, 7, 21


def write_graph(
    folder: Path, tensors: dict[str, tuple[int, list[int]]], counts: dict[str, int] | None, external: bool = False
) -> None:
    """A graph of nothing but initializers, and a config.json."""
    from onnx import TensorProto, helper

    sizes = {FLOAT: 4, HALF: 2, INT8: 1, INT64: 8}
    made = []
    for name, (dtype, shape) in tensors.items():
        count = 1
        for length in shape:
            count *= length
        size = (count + 1) // 2 if dtype == UINT4 else count * sizes[dtype]
        made.append(helper.make_tensor(name, dtype, shape, bytes(size), raw=True))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [], made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    if counts is not None:
        model.metadata_props.add(key="sdcompress", value=json.dumps({"parameters": counts}))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    onnx.save_model(
        model, str(folder / "model.onnx"), save_as_external_data=external, location="model.onnx_data", size_threshold=0
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline of one UNet: codes of 8 bits, their scales, a bias and a shape constant; weights beside the graph."""
    write_graph(
        tmp_path / "unet",
        {"a.weight": (INT8, [6, 4]), "a.scale": (HALF, [6]), "a.bias": (FLOAT, [6]), "shape": (INT64, [4])},
        {"a.weight": 24, "a.scale": 0, "a.bias": 6},
        external=True,
    )
    (tmp_path / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    return tmp_path


def test_weights_are_what_the_metadata_says(folder: Path) -> None:
    source = open_source(str(folder))
    unet = source.components["unet"]
    assert source.format == "onnx" and not source.notes
    assert {name: (spec.dtype, spec.shape, spec.parameters) for name, spec in unet.tensors.items()} == {
        "a.weight": ("I8", (6, 4), 24),
        "a.scale": ("F16", (6,), 0),
        "a.bias": ("F32", (6,), 6),
    }
    assert unet.weights_bytes == 24 + 12 + 24
    everything = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert source.size_bytes == describe(source)["size_bytes"] == everything


def test_foreign_files_count_floats_and_small_integers_and_say_so(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    write_graph(
        folder / "unet",
        {"codes": (INT8, [6, 4]), "packed": (UINT4, [3, 3]), "scale": (FLOAT, [6]), "axes": (INT64, [4])},
        None,
    )
    source = open_source(str(folder))
    unet = source.components["unet"]
    assert {name: spec.parameters for name, spec in unet.tensors.items()} == {"codes": 24, "packed": 9, "scale": 6}
    assert unet.tensors["packed"].dtype == "U4"
    assert [note for note in describe(source)["notes"] if note.startswith("unet: not exported by sdcompress")]


def test_four_bits_take_half_a_byte(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    write_graph(folder / "unet", {"packed": (UINT4, [3, 3])}, {"packed": 9})
    assert open_source(str(folder)).components["unet"].weights_bytes == 5


def test_encoder_and_decoder_are_one_vae(folder: Path) -> None:
    write_graph(folder / "vae_encoder", {"val_1": (FLOAT, [2]), "encoder.w": (FLOAT, [3])}, None)
    write_graph(folder / "vae_decoder", {"val_1": (FLOAT, [4]), "decoder.w": (FLOAT, [5])}, None)
    index = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    vae = open_source(str(folder)).components["vae"]
    assert {name: spec.parameters for name, spec in vae.tensors.items()} == {
        "vae_encoder.val_1": 2,
        "encoder.w": 3,
        "vae_decoder.val_1": 4,
        "decoder.w": 5,
    }


def test_safetensors_beside_the_graph_win(folder: Path, nano_folder: Path) -> None:
    """As in repositories on the hub that hold both."""
    for file in (nano_folder / "unet").iterdir():
        shutil.copy(file, folder / "unet")
    assert open_source(str(folder)).format == "safetensors"


def test_external_data_and_torch_are_not_needed(folder: Path) -> None:
    data = folder / "unet" / "model.onnx_data"
    size = data.stat().st_size
    data.unlink()
    with data.open("wb") as stream:  # a hole of the same length: reading it would give zeros, its size is all we need
        stream.truncate(size)
    script = (
        "import sys; from sdcompress.sources.opening import open_source\n"
        "assert open_source(sys.argv[1]).parameters == 30\n"
        "assert not {'torch', 'onnxruntime', 'diffusers'} & set(sys.modules)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


def _edit(file: Path, change: Any) -> None:
    model = onnx.load(str(file), load_external_data=False)
    change(model)
    file.write_bytes(model.SerializeToString())


def test_files_that_are_not_whole(folder: Path) -> None:
    unet = folder / "unet"
    data = (unet / "model.onnx_data").read_bytes()
    (unet / "model.onnx_data").write_bytes(data[:-10])
    with pytest.raises(SourceError, match=r"model\.onnx_data: ends 10 bytes before the last tensor"):
        open_source(str(folder))
    (unet / "model.onnx_data").unlink()
    with pytest.raises(SourceError, match=r"model\.onnx_data: missing, though model\.onnx keeps weights in it"):
        open_source(str(folder))
    (unet / "model.onnx_data").write_bytes(data)
    (unet / "config.json").rename(folder / "config.json")
    with pytest.raises(SourceError, match=r"has a model\.onnx but no config\.json"):
        open_source(str(folder))
    (folder / "config.json").rename(unet / "config.json")

    def escape(model: Any) -> None:
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = "../../secret"

    whole = (unet / "model.onnx").read_bytes()
    _edit(unet / "model.onnx", escape)
    with pytest.raises(SourceError, match=r"tensor a\.weight lies in \.\./\.\./secret, outside of its folder"):
        open_source(str(folder))
    for wrong, message in (("{", "malformed"), ('{"parameters": {"gone": 4}}', "lists gone, which it does not hold")):
        (unet / "model.onnx").write_bytes(whole)
        _edit(unet / "model.onnx", lambda model, wrong=wrong: setattr(model.metadata_props[0], "value", wrong))
        with pytest.raises(SourceError, match=message):
            open_source(str(folder))
    (unet / "model.onnx").write_bytes(whole[:-20])
    with pytest.raises(SourceError, match=r"model\.onnx: is not a whole ONNX file"):
        open_source(str(folder))


def test_parts_that_are_missing(folder: Path) -> None:
    index = {"unet": ["diffusers", "UNet2DConditionModel"], "text_encoder": ["transformers", "CLIPTextModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match=r"text_encoder: missing, though model_index\.json lists text_encoder"):
        open_source(str(folder))
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder/config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"text_encoder: has a config\.json but no model\.onnx"):
        open_source(str(folder))


def test_onnx_that_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(SourceError, match=r"pip install 'sdcompress\[onnx\]'"):
        open_source(str(folder))
