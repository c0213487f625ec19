"""Formats are found by module, in either of the two ways in which a module can offer them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from random_weights import random

from sdcompress.errors import InternalError
from sdcompress.quant import formats
from sdcompress.quant.registry import from_label, known_formats

TOY = """
from dataclasses import dataclass
from sdcompress.quant.formats.affine import Affine
from sdcompress.quant.formats.symmetric import Symmetric

@dataclass(frozen=True)
class Toy(Symmetric):
    name = "toy"
    bits = 3

FORMATS = (Affine("toys", 2),)
"""


@pytest.fixture
def new_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a further module of quant/formats/."""
    known_formats()  # cached without it
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    yield tmp_path / "toy.py"
    sys.modules.pop("sdcompress.quant.formats.toy", None)


def test_a_new_module_is_all_that_a_format_needs(new_module: Path) -> None:
    new_module.write_text(TOY)
    found = known_formats.__wrapped__()
    assert set(found) - set(known_formats()) == {"toy", "toys"}
    weight = random(3, 40)
    for toy, like in (("toy", "int3/8"), ("toys", "uint2/8")):
        tensor, same = replace(found[toy], group_size=8).quantize(weight), from_label(like).quantize(weight)
        assert torch.equal(tensor.codes, same.codes) and tensor.format.label == f"{toy}/8"


def test_two_formats_of_one_name_are_refused(new_module: Path) -> None:
    new_module.write_text(TOY.replace('"toys"', '"uint2"'))
    with pytest.raises(InternalError, match="two formats are called uint2"):
        known_formats.__wrapped__()


def test_labels_that_mean_nothing() -> None:
    with pytest.raises(KeyError):
        from_label("int9")
    with pytest.raises(ValueError, match="no option 'scal8'"):
        from_label("int8+scal8")
