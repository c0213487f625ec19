"""Builds a full-size pipeline folder with seeded random weights from a catalog entry: real shapes without a download.

    python benchmarks/random_pipeline.py sd15 --dtype float16 --seed 0 --out /tmp/sd15 [--components unet,vae]

Stock `DiffusionPipeline.from_pretrained` loads the folder and runs it; the pictures are noise. Weights are drawn tensor
by tensor and streamed to the file, so memory holds one tensor. Each tensor has its own random stream, keyed by seed,
component and name: building fewer components does not change the others. Weights are scaled by their fan-in so that
activations stay finite in float16; norms are 1, biases 0. Tokenizers know single bytes only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdcompress.errors import SourceError, UserError
from sdcompress.files.safetensors_file import StreamWriter
from sdcompress.sources import catalog
from sdcompress.sources.source import Source
from sdcompress.sources.spec import ComponentSpec, layers_of

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
CHUNK = 4 << 20  # weights drawn at a time
BARE_STD = 0.02  # tables of embeddings and parameters that belong to no layer
# Thresholds of the safety checker: a similarity of random vectors never reaches 1, so no picture is blacked out.
_ONES = ("_embeds_weights",)


def build_random_pipeline(
    entry_name: str, out: Path, dtype: str = "float16", seed: int = 0, components: Sequence[str] | None = None
) -> Path:
    """The folder `out`, holding the catalog pipeline `entry_name`, or only the given components of it."""
    entry = catalog.find(entry_name)
    if entry is None:
        raise SourceError(f"{entry_name}: not in the catalog; choose one of {', '.join(catalog.names())}")
    source = catalog.open_entry(entry, entry_name)
    wanted = sorted(source.components) if components is None else list(components)
    unknown = sorted(set(wanted) - set(source.components))
    if unknown:
        raise UserError(f"components: {entry_name} has no {unknown[0]}; it has {', '.join(sorted(source.components))}")
    if dtype not in DTYPES:
        raise UserError(f"dtype: {dtype} is none of {', '.join(DTYPES)}")
    write_json(out / "model_index.json", model_index_of(source, wanted))
    for path, content in entry.files.items():
        write_json(out / path, content)
    for part, facts in entry.tokenizers.items():
        write_tokenizer(out / part, facts)
    for part in wanted:
        write_random_component(source.components[part], out / part, dtype, seed)
    return out


def model_index_of(source: Source, components: Sequence[str]) -> dict[str, Any]:
    """The pipeline's model_index.json, components that are not wanted marked as absent."""
    absent = {part: [None, None] for part in source.components if part not in components}
    return {**source.model_index, **absent}


def write_random_component(spec: ComponentSpec, folder: Path, dtype: str, seed: int) -> Path:
    """The safetensors file written into `folder`, beside the component's config.json."""
    write_json(folder / "config.json", spec.config)
    file = folder / ("diffusion_pytorch_model.safetensors" if spec.library == "diffusers" else "model.safetensors")
    code = DTYPES[dtype]
    kinds = {layer.weight: layer.kind for layer in layers_of(spec) if layer.weight}
    header = {name: (code, tensor.shape) for name, tensor in spec.tensors.items()}
    with StreamWriter(file, header, {"format": "pt"}) as writer:
        for name, tensor in spec.tensors.items():
            scale, offset = scale_and_offset(name, kinds.get(name), tensor.shape)
            writer.write(name, random_bytes(f"{seed}/{spec.name}/{name}", tensor.shape, scale, offset, code))
    return file


def scale_and_offset(name: str, kind: str | None, shape: tuple[int, ...]) -> tuple[float, float]:
    """Standard deviation and mean of a tensor's values; `kind` is that of the layer whose weight it is."""
    if kind == "norm" or name.endswith(_ONES):
        return 0.0, 1.0
    if name.endswith(".bias"):
        return 0.0, 0.0
    if kind is None or kind == "embedding":
        return BARE_STD, 0.0
    return 1 / math.sqrt(math.prod(shape[1:])), 0.0  # LeCun: unit variance in, unit variance out


def random_bytes(key: str, shape: tuple[int, ...], scale: float, offset: float, dtype: str) -> bytearray:
    """The raw little-endian bytes of a tensor of normal values; the same key gives the same values."""
    digest = hashlib.sha256(key.encode()).digest()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))
    count = math.prod(shape)
    width = 4 if dtype == "F32" else 2
    data = bytearray(count * width)
    view = np.frombuffer(data, dtype={"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[dtype])
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        if scale == 0.0:
            values = np.full(size, offset, dtype=np.float32)
        else:
            values = generator.standard_normal(size, dtype=np.float32) * np.float32(scale) + np.float32(offset)
        view[start : start + size] = _bfloat16_bits(values) if dtype == "BF16" else values
    return data


def _bfloat16_bits(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even
    return (rounded >> 16).astype(np.uint16)


def write_tokenizer(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes a working tokenizer of the wanted class that knows single bytes or characters only."""
    if facts["tokenizer_class"] == "CLIPTokenizer":
        _write_clip_tokenizer(folder, facts)
    else:
        _write_t5_tokenizer(folder, facts)


def _write_clip_tokenizer(folder: Path, facts: Mapping[str, Any]) -> None:
    start, end = "<|startoftext|>", "<|endoftext|>"
    characters = list(byte_characters())
    words = [*characters, *(character + "</w>" for character in characters), start, end]
    # The end token has the highest id, which is how CLIP's text model finds where to pool.
    write_json(folder / "vocab.json", {word: i for i, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": facts["pad_token"]}
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", {"do_lower_case": True, "errors": "replace", **special, **facts})


def _write_t5_tokenizer(folder: Path, facts: Mapping[str, Any]) -> None:
    special = ["<pad>", "</s>", "<unk>"]
    pieces = [[word, 0.0] for word in special]
    pieces += [[character, -1.0] for character in ("\u2581", *(chr(i) for i in range(0x21, 0x7F)))]
    split = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    sentence = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    pair = [*sentence, {"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": split,
        "decoder": split, "added_tokens": [{"id": i, "content": word, **flags} for i, word in enumerate(special)],
        "post_processor": {
            "type": "TemplateProcessing", "single": sentence, "pair": pair,
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": False},
    }  # fmt: skip
    write_json(folder / "tokenizer.json", tokenizer)
    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": facts["pad_token"]}
    write_json(folder / "special_tokens_map.json", tokens)
    write_json(folder / "tokenizer_config.json", {"extra_ids": 0, **tokens, **facts})


def byte_characters() -> Iterator[str]:
    """The 256 printable characters that stand for bytes in byte-level BPE, printable bytes first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    yield from map(chr, printable)
    yield from (chr(0x100 + i) for i in range(256 - len(printable)))


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` to `file`, making its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Builds the folder that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entry", help="catalog name or alias")
    parser.add_argument("--dtype", default="float16", choices=sorted(DTYPES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--components", help="comma-separated; all of them unless given")
    arguments = parser.parse_args()
    components = arguments.components.split(",") if arguments.components else None
    print(build_random_pipeline(arguments.entry, arguments.out, arguments.dtype, arguments.seed, components))


if __name__ == "__main__":
    main()
