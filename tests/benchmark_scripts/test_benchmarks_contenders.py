"""The benchmarks' race: who runs when, beside whom, and what is compared with what; with workers that pretend."""

import math
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from benchmarks import onnx_quality
from benchmarks.contenders import make, onnx_runtime
from benchmarks.contenders.catalog import BASELINE, CONTENDERS, REFERENCE, with_needs
from benchmarks.contenders.race import Entrant, form_groups, run_race
from benchmarks.contenders.summary import describe_error, output_error, paired_ratios, picture_psnr, summarise
from sdcompress.planning.recipe import load_recipe, shipped_recipes

ROOT = Path(__file__).resolve().parents[2]
GB = 10**9

PRETENDER = """
import json, os, sys, time
def rest(): return {"pid": os.getpid(), "load_s": 0.5, "size_bytes": 7, "details": {}}
for line in sys.stdin:
    request = json.loads(line)
    do = request["do"]
    if do == request.get("dies") or (do == "load" and request.get("dies") == "load"):
        os._exit(3)
    if do == "load": answer = rest(); dies = request.get("dies_at")
    elif do == "warm_up": answer = {"seconds": [0.1, 0.2]}
    elif do == "output": open(request["to"], "w").close(); answer = {}
    else:
        if dies == "step": os._exit(3)
        with open(LOG, "a") as log: log.write(NAME + "\\n")
        answer = {"seconds": 1.0, "peak_bytes": 5}
    print(json.dumps(answer), flush=True)
"""


def pretender(tmp_path, name, **load):
    script = f"NAME, LOG = {name!r}, {str(tmp_path / 'turns')!r}\n{textwrap.dedent(PRETENDER)}"
    return Entrant(name, (sys.executable, "-c", script), load, tmp_path / f"{name}.log", 1)


def test_groups_fit_the_budget_and_hold_the_baseline():
    peaks = {"base": 7 * GB, "a": 4 * GB, "b": 8 * GB, "c": 3 * GB, "d": 6 * GB}
    groups = form_groups(peaks, "base", 16 * GB)
    assert groups == [["base", "a", "c"], ["base", "b"], ["base", "d"]]
    assert sorted(name for group in groups for name in group[1:]) == ["a", "b", "c", "d"]


def test_race_interleaves_processes(tmp_path):
    entrants = {name: pretender(tmp_path, name) for name in ("base", "a", "b")}
    race = run_race(entrants, [["base", "a"], ["base", "b"]], rounds=2)
    assert (tmp_path / "turns").read_text().split() == ["base", "a", "base", "a", "base", "b", "base", "b"]
    assert race["failed"] == {}
    assert [(turn["group"], turn["round"]) for turn in race["samples"]["base"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert paired_ratios(race["samples"]["b"], race["samples"]["base"]) == [1.0, 1.0]


def test_a_contender_that_dies_in_a_turn_is_recorded_and_the_race_goes_on(tmp_path):
    entrants = {name: pretender(tmp_path, name) for name in ("base", "a")}
    entrants["dead"] = pretender(tmp_path, "dead", dies_at="step")
    race = run_race(entrants, [["base", "dead", "a"]], rounds=3)
    assert "return code 3" in race["failed"]["dead"] and race["samples"]["dead"] == []
    assert len(race["samples"]["base"]) == len(race["samples"]["a"]) == 3


def test_output_error():
    reference = np.array([3.0, 4.0], dtype=np.float32)
    error = output_error(reference, np.array([3.0, 4.5], dtype=np.float32))
    assert error["relative_l2"] == pytest.approx(0.1) and error["sqnr_db"] == pytest.approx(20.0)
    assert error["rmse"] == pytest.approx(0.5 / math.sqrt(2))
    assert output_error(reference, reference)["sqnr_db"] is None
    bad = output_error(reference, np.array([np.nan, 4.0]))
    assert bad["relative_l2"] is None and bad["not_finite"] == 0.5
    assert describe_error(bad) == picture_psnr(bad) == "not finite"
    with pytest.raises(ValueError, match="3 values"):
        output_error(reference, np.zeros(3))


def turns(group, *seconds):
    return [{"group": group, "round": number, "seconds": each} for number, each in enumerate(seconds)]


def test_ratios_are_taken_within_a_group():
    """The machine is twice as slow while the second group runs."""
    samples = {
        REFERENCE: turns(0, 8.0, 8.0, 8.0),
        BASELINE: turns(0, 4.0, 4.0, 5.0) + turns(1, 8.0, 8.0, 8.0),
        "openvino-fp32": turns(1, 4.0, 4.4, 3.6),
    }
    known = {"label": "", "family": "", "failed": None}
    contenders = {name: {**known, "samples": each} for name, each in samples.items()}
    result = {"baseline": BASELINE, "reference": REFERENCE, "made": {}, "contenders": contenders}
    rows = {row["name"]: row for row in summarise(result)}
    assert rows["openvino-fp32"]["of_baseline"] == pytest.approx(0.5)
    assert rows[REFERENCE]["of_baseline"] == pytest.approx(2.0)
    assert rows["openvino-fp32"]["of_reference"] == pytest.approx(0.25)
    assert rows[BASELINE]["of_baseline"] == 1.0
    assert (rows[BASELINE]["low_s"], rows[BASELINE]["median_s"], rows[BASELINE]["high_s"]) == (4.0, 6.5, 8.0)


def test_what_is_needed_is_made_first():
    names = [one.name for one in with_needs([CONTENDERS["openvino-bf16"]])]
    assert names == ["optimum", "openvino-fp32", "openvino-bf16"]
    order = list(CONTENDERS)
    assert all(order.index(need) < order.index(one.name) for one in CONTENDERS.values() for need in one.needs)


def test_every_contender_has_its_module():
    folder = ROOT / "benchmarks" / "contenders"
    assert all((folder / f"{one.module}.py").is_file() for one in CONTENDERS.values())
    assert set(onnx_quality.WANTED) <= {*CONTENDERS, *onnx_quality.TORCH_RECIPES}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_making_that_needs_too_much_memory_is_stopped(tmp_path):
    command = [sys.executable, "-c", "import time; hog = bytearray(300_000_000); time.sleep(60)"]
    made = make.run_watched(command, tmp_path / "log", 1, limit_bytes=150_000_000)
    assert "it needed more than 0.1 GB" in made["failed"] or "it needed more than 0.2 GB" in made["failed"]
    assert made["peak_bytes"] > 150_000_000 and made["seconds"] < 50


def test_recipes_calibrate_with_as_much_as_the_peers(tmp_path):
    settings = {"source": "tiny-sd", "calibration_prompts": 3, "steps": 7}
    file = onnx_runtime.write_recipe("onnx-int8", settings, tmp_path / "recipes")
    written, shipped = load_recipe(str(file)), load_recipe("onnx-int8")
    assert (written.calibration.prompt_count, written.calibration.num_inference_steps) == (3, 7)
    assert written.components == shipped.components and written.calibration.range == shipped.calibration.range


@pytest.mark.parametrize(
    "name", [name for name, one in CONTENDERS.items() if one.family == "sdcompress" and one.makes != "nothing"]
)
def test_those_recipes_are_calibrated_that_quantize_activations(name):
    text = shipped_recipes()[CONTENDERS[name].options["recipe"]].read_text(encoding="utf-8")
    assert CONTENDERS[name].calibrated == ("activations: int8" in text)
