"""Names of weight files: their formats, variants and shards, and which of them a component is read from."""

from __future__ import annotations

import re

from sdcompress.errors import SourceError

_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_WEIGHT_SUFFIXES = (
    *_PICKLES, ".safetensors", ".msgpack", ".h5", ".gguf", ".onnx", ".onnx_data", ".onnx.data", ".xml"
)  # fmt: skip
_SHARD_INDEX = re.compile(r"\.index(\.[\w-]+)?\.json$")  # with or without a variant


def is_weight_file(file: str) -> bool:
    """Return whether a file of this name holds weights in any format, or is the index of their shards."""
    return file.endswith(_WEIGHT_SUFFIXES) or is_shard_index(file)


def is_shard_index(file: str) -> bool:
    """Return whether a file of this name is a shard index, such as `model.safetensors.index.fp16.json`."""
    return bool(_SHARD_INDEX.search(file))


def is_pickle(file: str) -> bool:
    """Return whether a file of this name holds pickled weights, which can run code when they are opened."""
    return file.endswith(_PICKLES)


def choose_weight_files(files: list[str], variant: str | None, where: str, allow_pickle: bool = False) -> list[str]:
    """Return the names of the weight files that a component is read from, sorted; none if it has no weights.

    Args:
        files: names of all files in the component's folder.
        variant: the wanted variant, such as `fp16`. A component that has only one set of files is read from that.
            None: the files without a variant, or the only variant.
        where: the component, for errors.
        allow_pickle: whether pickled files are chosen where there are no safetensors.

    Raises:
        SourceError: the variant is missing or ambiguous, or there are only pickles that are not allowed, or only GGUF.

    Examples:
        >>> choose_weight_files(["model.safetensors", "model.fp16.safetensors"], "fp16", "text_encoder")
        ['model.fp16.safetensors']
    """
    by_variant = _by_variant(files, ".safetensors")
    pickles = [file for file in files if is_pickle(file)]
    if not by_variant and pickles:
        if not allow_pickle:
            raise SourceError(
                f"{where}: has only pickled weights ({pickles[0]}), which can run code when opened; save the pipeline "
                f"with safe_serialization=True, or give --allow-pickle to read them without running any"
            )
        by_variant = _by_variant(files, ".bin")
    if not by_variant:
        gguf = [file for file in files if file.endswith(".gguf")]
        if gguf:
            raise SourceError(
                f"{where}: has only GGUF weights ({gguf[0]}), quantized already; give the original weights"
            )
        return []
    if variant is not None:
        if variant not in by_variant and len(by_variant) > 1:
            found = ", ".join(repr(v) for v in sorted(by_variant))
            raise SourceError(f"{where}: no variant {variant!r} among its safetensors ({found})")
        chosen = variant if variant in by_variant else next(iter(by_variant))
    elif "" in by_variant:
        chosen = ""
    elif len(by_variant) == 1:
        chosen = next(iter(by_variant))
    else:
        raise SourceError(f"{where}: several variants ({', '.join(sorted(by_variant))}); choose one with --variant")
    return sorted(by_variant[chosen])


def variant_of(file: str) -> str:
    """Return the variant in the name of a weight file; "" if it has none.

    Examples:
        >>> variant_of("model.fp16-00001-of-00002.safetensors")
        'fp16'
    """
    stem = re.sub(r"-\d{5}-of-\d{5}", "", file.rpartition(".")[0])
    return stem.partition(".")[2]


def _by_variant(files: list[str], suffix: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for file in files:
        if file.endswith(suffix):
            found.setdefault(variant_of(file), []).append(file)
    return found


def check_shard_count(where: str, chosen: list[str]) -> None:
    """Raise SourceError unless the chosen files are one file or all shards of one set."""
    sharded = re.search(r"-\d{5}-of-(\d{5})", chosen[0]) if chosen else None
    if not sharded and len(chosen) > 1:
        kind = "safetensors" if chosen[0].endswith(".safetensors") else "pickled"
        raise SourceError(f"{where}: several {kind} files ({', '.join(chosen)}); keep one of them")
    if sharded and len(chosen) != int(sharded[1]):
        raise SourceError(f"{where}: {len(chosen)} of {int(sharded[1])} shards are there; download the rest")
