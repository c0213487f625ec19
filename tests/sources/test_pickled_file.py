"""Pickled weights: read only when they are allowed, by an unpickler that runs nothing, from where they lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from original_layout import sd1_checkpoint
from safetensors.torch import load_file

from sdcompress.backends.open_pipeline import open_pipeline
from sdcompress.errors import SourceError
from sdcompress.execution.execute import execute
from sdcompress.files.safetensors_file import read_bytes
from sdcompress.files.torch_tensors import read_tensor
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import load_recipe
from sdcompress.sources.opening import open_folder, open_source
from sdcompress.sources.pickled_file import read_pickled


class Malicious:
    """Unpickled carelessly, it writes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.file, "owned"))


def test_tensors_are_read_from_where_they_lie(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    state = {
        "plain": base,
        "rows": base[2:4],  # shares the storage of another
        "half": torch.randn(3).half(),
        "brain": torch.randn(2, 2).bfloat16(),
        "whole": torch.arange(5),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 3),
    }
    file = tmp_path / "weights.bin"
    torch.save({"state_dict": state, "global_step": 7, "optimizer": [torch.randn(9)]}, file)
    ranges = read_pickled(file, allow_pickle=True)
    assert ranges.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(read_tensor(ranges[name]), tensor), name


def test_nothing_malicious_is_run(tmp_path: Path) -> None:
    file, victim = tmp_path / "evil.ckpt", tmp_path / "victim"
    torch.save({"state_dict": {"a": torch.ones(2)}, "callbacks": Malicious(victim)}, file)
    for allow in (False, True):
        with pytest.raises(SourceError) as caught:
            open_source(str(file), allow_pickle=allow)
        assert caught.value.exit_code == 2
        assert not victim.exists()
    assert "was refused, and nothing in it was run" in str(caught.value)
    torch.load(file, weights_only=False)  # it would have been
    assert victim.exists()


def test_what_cannot_be_read_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    with pytest.raises(SourceError, match=r"is a pickle, which can run code when opened; .* --allow-pickle"):
        read_pickled(file, allow_pickle=False)
    torch.save({"a": torch.ones(3, 2).T}, file)
    with pytest.raises(SourceError, match="a is stored in another order"):
        read_pickled(file, allow_pickle=True)
    torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(SourceError, match=r"cannot be read as a file of torch 1.6 or later"):
        read_pickled(file, allow_pickle=True)
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(SourceError, match=r"weights.bin: "):
        read_pickled(file, allow_pickle=True)
    torch.save([torch.ones(2)], file)
    with pytest.raises(SourceError, match="holds a list, not weights by name"):
        read_pickled(file, allow_pickle=True)


def test_a_pickled_checkpoint_is_the_same_pipeline(nano_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "nano.ckpt"
    torch.save({"state_dict": sd1_checkpoint(nano_folder)}, file)
    source, wanted = open_source(str(file), like=str(nano_folder), allow_pickle=True), open_folder(nano_folder)
    assert source.components == wanted.components
    for component, ranges in wanted.tensors.items():
        for name, where in ranges.items():
            assert read_bytes(source.tensors[component][name]) == read_bytes(where)
    assert source.path is not None
    assert type(open_pipeline(source.path)).__name__ == "StableDiffusionPipeline"


@pytest.fixture
def pickled_folder(nano_copy: Path) -> Path:
    """The nano pipeline as it was saved with safe_serialization=False; its text encoder in two shards."""
    for part, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
        file = nano_copy / part / f"{stem}.safetensors"
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    file = nano_copy / "text_encoder" / "model.safetensors"
    state, names = load_file(file), [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    parts = [dict(list(state.items())[i::2]) for i in range(2)]
    for name, part in zip(names, parts, strict=True):
        torch.save({key: tensor.clone() for key, tensor in part.items()}, file.with_name(name))
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = {"metadata": {"total_size": file.stat().st_size}, "weight_map": weight_map}
    file.with_name("pytorch_model.bin.index.json").write_text(json.dumps(index))
    file.unlink()
    return nano_copy


def test_a_pickled_folder_compresses_to_the_same(pickled_folder: Path, nano_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has only pickled weights .* or give --allow-pickle"):
        open_source(str(pickled_folder))
    recipe = load_recipe("int8")
    execute(make_plan(recipe, open_source(str(pickled_folder), allow_pickle=True)), tmp_path / "pickled")
    execute(make_plan(recipe, open_folder(nano_folder)), tmp_path / "plain")
    for file in (tmp_path / "plain").rglob("*.safetensors"):
        wanted, found = load_file(file), load_file(tmp_path / "pickled" / file.relative_to(tmp_path / "plain"))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not list((tmp_path / "pickled").rglob("*.bin*"))
    first = pickled_folder / "text_encoder" / "pytorch_model-00001-of-00002.bin"
    shutil.move(first, tmp_path / "away.bin")
    with pytest.raises(SourceError, match="1 of 2 shards are there"):
        open_source(str(pickled_folder), allow_pickle=True)
