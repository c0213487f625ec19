"""Pipelines as transformers 4 and 5 save them, and tensors by their canonical names, whichever is installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sdcompress.files.torch_tensors import read_tensor
from sdcompress.sources.opening import open_source
from sdcompress.sources.tensor_names import canonical_name

WEIGHTS = "text_encoder/model.safetensors"
LEVEL = "text_model."


def tensors_in(folder: Path, part: str) -> dict[str, torch.Tensor]:
    """Canonical name -> tensor of a component in a pipeline's folder."""
    return {name: read_tensor(where) for name, where in open_source(str(folder)).tensors[part].items()}


def tensors_of(model: Any) -> dict[str, torch.Tensor]:
    """Canonical name -> tensor of a model."""
    return {canonical_name(type(model).__name__, name): tensor for name, tensor in model.state_dict().items()}


def rewrite(folder: Path, version: int, out: Path) -> Path:
    """Copy the Stable Diffusion 1 pipeline `folder` to `out` as transformers `version` (4 or 5) would have saved it."""
    shutil.copytree(folder, out)
    tensors = {name.removeprefix(LEVEL): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    prefix = LEVEL if version == 4 else ""
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, out / WEIGHTS, {"format": "pt"})
    _rewrite_tokenizer(folder / "tokenizer", version, out / "tokenizer")
    return out


def _rewrite_tokenizer(folder: Path, version: int, out: Path) -> None:
    from transformers import CLIPTokenizerFast

    tokenizer = CLIPTokenizerFast.from_pretrained(folder)
    shutil.rmtree(out)
    out.mkdir()
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.model_max_length}
    settings |= {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    if version == 4:
        (out / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
        (out / "merges.txt").write_text("#version: 0.2\n")  # the tiny tokenizer has no merges
    else:
        tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
        settings |= {"backend": "tokenizers", "extra_special_tokens": []}
    (out / "tokenizer_config.json").write_text(json.dumps(settings))
