import sys
import types

import pytest

from sdcompress import registry
from sdcompress.errors import InternalError
from sdcompress.steps import Step


def test_finds_what_is_there():
    assert set(registry.steps()) == {"cast", "prune", "quantize", "export"}
    assert set(registry.formats()) == {"int8", "int8-unsaturated", "int4", "nf4", "fp4", "llm-int8"}


def test_refuses_a_second_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "twice").mkdir()
    (tmp_path / "twice" / "__init__.py").write_text("")
    body = "from sdcompress.steps import Step\nclass {0}(Step):\n    kind = 'same'\n"
    (tmp_path / "twice" / "a.py").write_text(body.format("A"))
    (tmp_path / "twice" / "b.py").write_text(body.format("B"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InternalError, match=r"twice\.b\.B: A is same already"):
        registry._find("twice", Step, "kind")
    assert isinstance(sys.modules.pop("twice"), types.ModuleType)


def test_nearest():
    assert registry.nearest("itn8", ["int8", "nf4"]) == "did you mean int8? known: int8, nf4"
    assert registry.nearest("zzz", ["int8"]) == "known: int8"
