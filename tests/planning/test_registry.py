import sys
import types

import pytest
import yaml

from sdcompress.errors import InternalError, nearest
from sdcompress.planning.recipe import parse_recipe
from sdcompress.planning.registry import describe_steps, known_steps
from sdcompress.planning.steps import Step
from sdcompress.plugins import find_classes
from sdcompress.quant.registry import known_formats, known_roundings


def test_finds_what_is_there():
    assert set(known_steps()) == {
        "replace_component", "fuse_lora", "cast", "prune", "sparsify", "recover", "smooth", "quantize", "export"
    }  # fmt: skip
    ours = {"int8", "int8-unsaturated", "normal-float4"} | {f"int{bits}" for bits in range(2, 7)}
    ours |= {f"{name}{bits}" for name in ("uint", "codebook") for bits in (2, 3, 4, 5, 6, 8)}
    assert set(known_formats()) == ours | {"fp4", "llm-int8", "nf4"}
    assert set(known_roundings()) == {"nearest", "search", "weighted-search", "hqq", "gptq"}


def test_every_parameter_of_a_step_is_described():
    steps = describe_steps()
    assert {step.kind for step in steps} == set(known_steps())
    for step in steps:
        assert step.summary and step.example.startswith(f"{step.kind}: ")
        assert all(parameter.description for parameter in step.parameters), step.kind
        recipe = {"schema_version": 1, "description": "T", "components": {"unet": [yaml.safe_load(step.example)]}}
        assert parse_recipe(yaml.safe_dump(recipe), "example").components["unet"][0].kind == step.kind


def test_refuses_a_second_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "twice").mkdir()
    (tmp_path / "twice" / "__init__.py").write_text("")
    body = "from sdcompress.planning.steps import Step\nclass {0}(Step):\n    kind = 'same'\n"
    (tmp_path / "twice" / "a.py").write_text(body.format("A"))
    (tmp_path / "twice" / "b.py").write_text(body.format("B"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InternalError, match=r"twice\.b\.B: A is same already"):
        find_classes("twice", Step, "kind")
    assert isinstance(sys.modules.pop("twice"), types.ModuleType)


def test_nearest():
    assert nearest("itn8", ["int8", "nf4"]) == "did you mean int8? known: int8, nf4"
    assert nearest("zzz", ["int8"]) == "known: int8"
