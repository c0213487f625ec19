"""Safetensors files without torch: what the reference implementation writes, and files that are not whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sdcompress.errors import InternalError, SourceError
from sdcompress.files.safetensors_file import StreamWriter, TensorRange, ranges_of_header, read_bytes, read_header

WHOLE = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones((4,), np.float16),
    "c": np.zeros((0, 2), np.int8),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(WHOLE, path, {"format": "pt"})
    return path


def write_raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4], **changes}}


def test_reads_what_the_reference_writes(file: Path) -> None:
    ranges = read_header(file)
    assert set(ranges) == {"a", "b", "c"}
    assert (ranges["a"].dtype, ranges["a"].shape, ranges["a"].size_bytes) == ("F32", (2, 3), 24)
    for name, array in WHOLE.items():
        assert bytes(read_bytes(ranges[name])) == array.tobytes()


def test_the_reference_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    codes = {"float32": "F32", "float16": "F16", "int8": "I8"}
    header = {name: (codes[array.dtype.name], array.shape) for name, array in WHOLE.items()}
    with StreamWriter(path, header, {"format": "pt"}) as writer:
        for name, array in WHOLE.items():
            writer.write(name, array.tobytes())
    read = load_file(path)
    assert set(read) == set(WHOLE)
    for name, array in WHOLE.items():
        np.testing.assert_array_equal(read[name], array)


def test_a_long_tensor_name_still_leaves_data_aligned(tmp_path: Path) -> None:
    for length in range(1, 9):
        path = tmp_path / f"{length}.safetensors"
        with StreamWriter(path, {"n" * length: ("F32", (1,))}, {}) as writer:
            writer.write("n" * length, bytes(4))
        assert read_header(path)["n" * length].offset % 8 == 0


@pytest.mark.parametrize("kept", [0, 5, 8, 40, -1])
def test_truncated(file: Path, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(SourceError, match="truncated") as caught:
        read_header(file)
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"not json", "not valid JSON"),
        (b"\xff\xfe\xfd\xfc", "not valid JSON"),
        ([1, 2], "not a JSON object"),
        ({"x": "text"}, "entry for x is malformed"),
        ({"x": {"dtype": "F16"}}, "entry for x is malformed"),
        (entry(data_offsets=["a", "b"]), "entry for x is malformed"),
        (entry(data_offsets=[0]), "entry for x is malformed"),
        (entry(data_offsets=None), "entry for x is malformed"),
        (entry(dtype=["F16"]), "which is not supported"),
        (entry(shape=None), "entry for x is malformed"),
        (entry(shape=[-1, -2]), "entry for x is malformed"),
        (entry(shape=[3]), "does not fit its 4 bytes"),
        (entry(data_offsets=[-4, 0]), "does not fit"),
        (entry(dtype="F4"), "dtype F4, which is not supported"),
    ],
)
def test_corrupt_headers(tmp_path: Path, header: object, says: str) -> None:
    path = write_raw(tmp_path / "model.safetensors", header, bytes(4))
    with pytest.raises(SourceError, match=says) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    longer = write_raw(tmp_path / "longer.safetensors", entry(), bytes(4), length=2**40)
    pointer = tmp_path / "pointer.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1719125304\n")
    for path, says in (
        (longer, "header is longer than the file"),
        (pointer, "truncated or no safetensors file"),
        (tmp_path / "gone.safetensors", "cannot be read"),
    ):
        with pytest.raises(SourceError, match=says) as caught:
            read_header(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_shrinks_while_it_is_read(file: Path) -> None:
    where = read_header(file)["a"]
    file.write_bytes(file.read_bytes()[: where.offset + 4])
    with pytest.raises(SourceError, match="ended while it was read"):
        read_bytes(where)


def test_ranges_of_a_header_whose_file_is_elsewhere() -> None:
    ranges = ranges_of_header(Path("hub/model.safetensors"), entry(), data_start=100, total_bytes=None)
    assert ranges == {"x": TensorRange(Path("hub/model.safetensors"), "F16", (2,), 100, 4)}


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("y", 4, r"y \(4 bytes\) written where \('x', 4\) was due"),
        ("x", 3, r"x \(3 bytes\) written where"),
        ("x", 4, "1 tensors were never written"),
    ],
)
def test_writer_refuses_another_order_another_size_and_a_missing_tensor(
    tmp_path: Path, name: str, size: int, says: str
) -> None:
    writer = StreamWriter(tmp_path / "model.safetensors", {"x": ("F16", (2,)), "y": ("F16", (2,))}, {})
    with pytest.raises(InternalError, match=says), writer:
        writer.write(name, bytes(size))
