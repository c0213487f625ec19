"""What the plan says of a step's time is what was measured."""

import json

import pytest

from benchmarks import torch_step
from sdcompress.planning import step_cost
from sdcompress.quant.registry import known_formats

RESULT = {
    "baseline": "bf16",
    "threads": 2,
    "environment": {"cpu": "a CPU"},
    "contenders": {
        "bf16": {"seconds": [1.0, 2.0, 4.0]},
        "int8": {"seconds": [1.1, 2.2, 8.0]},
        "int8 with 8-bit activations": {"seconds": [0.9, 1.8, 8.0]},
        "uint4/64+rank16": {"seconds": [1.5, 3.0, 6.0]},
    },
}


def layers(*labels):
    return [torch_step.parsed(label) for label in labels]


def test_the_file_is_the_result():
    result = json.loads(torch_step.RESULT.read_text(encoding="utf-8"))
    assert json.loads(step_cost.FILE.read_text(encoding="utf-8")) == torch_step.summary_of(result)


def test_medians_of_the_rounds_ratios():
    found = torch_step.summary_of(RESULT)
    ratios = {"int8": 1.1, "int8 with 8-bit activations": 0.9, "uint4+rank": 1.5}
    assert found == {"machine": "2 threads of a CPU", "ratios": ratios}


def test_the_note_tells_measured_and_unmeasured(monkeypatch):
    measured = torch_step.summary_of(RESULT)
    monkeypatch.setattr(step_cost, "_measured", lambda: measured)
    note = step_cost.cost_note(layers("int8", "uint4/16+scale8+rank4", "int5", "int8 with 8-bit activations"))
    assert "int8 1.10x, int8 with 8-bit activations 0.90x, uint4+rank 1.50x" in note
    assert note.endswith("not measured: uint5") and "2 threads of a CPU" in note
    assert step_cost.cost_note([]) is None


@pytest.mark.parametrize("name", [name for name, fmt in known_formats().items() if "torch" in fmt.targets])
def test_every_torch_format_was_measured(name):
    measured = json.loads(step_cost.FILE.read_text(encoding="utf-8"))["ratios"]
    assert step_cost.cost_key(known_formats()[name], False) in measured
