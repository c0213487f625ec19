"""The benchmarks' race: who runs when, beside whom, what its figures and tables say; with workers that pretend."""

import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks import onnx_quality, readme
from benchmarks.contenders import make, onnx_runtime
from benchmarks.contenders.catalog import BASELINE, CONTENDERS, REFERENCE, choose, with_needs
from benchmarks.contenders.job import Job
from benchmarks.contenders.plot import draw_race
from benchmarks.contenders.race import Entrant, form_groups, order_turns, run_alone, run_race
from benchmarks.contenders.summary import (
    component_table,
    output_error,
    paired_ratios,
    picture_psnr,
    race_table,
    summarise,
)
from sdcompress.errors import UserError
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


def test_turns_go_round():
    assert [name for _, name in order_turns(["a", "b", "c"], 2)] == ["a", "b", "c", "a", "b", "c"]
    assert [number for number, _ in order_turns(["a", "b"], 2)] == [0, 0, 1, 1]


def test_groups_fit_the_budget_and_hold_the_baseline():
    peaks = {"base": 7 * GB, "a": 4 * GB, "b": 8 * GB, "c": 3 * GB, "d": 6 * GB}
    groups = form_groups(peaks, "base", 16 * GB)
    assert groups == [["base", "a", "c"], ["base", "b"], ["base", "d"]]
    assert sorted(name for group in groups for name in group[1:]) == ["a", "b", "c", "d"]


def test_too_large_a_contender_races_the_baseline_alone():
    assert form_groups({"base": 7, "huge": 30, "small": 1}, "base", 16) == [["base", "huge"], ["base", "small"]]


def test_a_race_of_the_baseline_alone_has_one_group():
    assert form_groups({"base": 7}, "base", 1) == [["base"]]


def test_race_interleaves_processes(tmp_path):
    entrants = {name: pretender(tmp_path, name) for name in ("base", "a", "b")}
    race = run_race(entrants, [["base", "a"], ["base", "b"]], rounds=2)
    assert (tmp_path / "turns").read_text().split() == ["base", "a", "base", "a", "base", "b", "base", "b"]
    assert race["failed"] == {}
    assert [(turn["group"], turn["round"]) for turn in race["samples"]["base"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert paired_ratios(race["samples"]["b"], race["samples"]["base"]) == [1.0, 1.0]


def test_a_contender_that_dies_while_loading_is_recorded_and_the_race_goes_on(tmp_path):
    entrants = {"base": pretender(tmp_path, "base"), "dead": pretender(tmp_path, "dead", dies="load")}
    race = run_race(entrants, [["base", "dead"]], rounds=1)
    assert "return code 3" in race["failed"]["dead"]
    assert len(race["samples"]["base"]) == 1


def test_a_contender_that_dies_in_a_turn_is_recorded_and_the_race_goes_on(tmp_path):
    entrants = {name: pretender(tmp_path, name) for name in ("base", "a")}
    entrants["dead"] = pretender(tmp_path, "dead", dies_at="step")
    race = run_race(entrants, [["base", "dead", "a"]], rounds=3)
    assert "return code 3" in race["failed"]["dead"] and race["samples"]["dead"] == []
    assert len(race["samples"]["base"]) == len(race["samples"]["a"]) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads the states of processes as Linux names them")
def test_those_that_wait_are_suspended(tmp_path, monkeypatch):
    from benchmarks.contenders import race

    states, known = [], []
    inner = race.resume

    def look(process):
        known.append(process)
        states.append({other.pid: other.status() for other in known})
        inner(process)

    monkeypatch.setattr(race, "resume", look)
    run_race({name: pretender(tmp_path, name) for name in ("base", "a")}, [["base", "a"]], rounds=2)
    assert len(states) == 4 and all(status == psutil.STATUS_STOPPED for seen in states for status in seen.values())


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_a_suspended_worker_ends_with_its_parent():
    worker = "from benchmarks.contenders.serving import die_first; die_first(); print('up', flush=True); input()"
    parent = (
        "import subprocess, sys, psutil, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {worker!r}], stdout=subprocess.PIPE, stdin=subprocess.PIPE)\n"
        "child.stdout.readline(); psutil.Process(child.pid).suspend(); print(child.pid, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, env=environment) as process:
        child = psutil.Process(int(process.stdout.readline()))
        process.kill()
    gone, _ = psutil.wait_procs([child], timeout=10)
    assert gone or child.status() == psutil.STATUS_ZOMBIE


def test_alone(tmp_path):
    found = run_alone(pretender(tmp_path, "a"), tmp_path / "out.npy")
    assert found["failed"] is None and (found["load_s"], found["peak_bytes"], found["size_bytes"]) == (0.5, 5, 7)
    assert "return code 3" in run_alone(pretender(tmp_path, "a", dies="load"), tmp_path / "out.npy")["failed"]


def test_output_error():
    reference = np.array([3.0, 4.0], dtype=np.float32)
    error = output_error(reference, np.array([3.0, 4.5], dtype=np.float32))
    assert error["relative_l2"] == pytest.approx(0.1) and error["sqnr_db"] == pytest.approx(20.0)
    assert error["rmse"] == pytest.approx(0.5 / math.sqrt(2))
    assert output_error(reference, reference)["sqnr_db"] is None
    bad = output_error(reference, np.array([np.nan, 4.0]))
    assert bad["relative_l2"] is None and bad["not_finite"] == 0.5
    with pytest.raises(ValueError, match="3 values"):
        output_error(reference, np.zeros(3))


def turns(group, *seconds):
    def parts(each):
        return {"text_encoder": each / 8, "unet": each / 2, "vae": each / 4}

    return [
        {"group": group, "round": number, "seconds": each, "component_s": parts(each), "peak_bytes": GB}
        for number, each in enumerate(seconds)
    ]


def entry(name, samples, **changes):
    known = CONTENDERS[name]
    facts = {"label": known.label, "family": known.family, "needs": list(known.needs), "failed": None}
    error = {"relative_l2": 0.01, "rmse": 0.001, "sqnr_db": 40.0, "not_finite": 0.0}
    ran = {"size_bytes": 2 * GB, "peak_bytes": 3 * GB, "load_s": 1.0, "error": error, "samples": samples}
    return {**facts, **ran, **changes}


@pytest.fixture
def result():
    return {
        "model": "sd15",
        "weights": "random",
        "component": "unet",
        "inputs": {"shapes": {"unet": {"sample": [2, 4, 64, 64]}}},
        "drawing": {"options": {"width": 512, "height": 512, "num_inference_steps": 20}},
        "threads": 2,
        "rounds": 3,
        "environment": {
            "cpu": "Abacus",
            "instructions": {"AVX2": True, "AVX512-VNNI": False},
            "versions": {"torch": "9"},
        },
        "openvino_environment": {"openvino": "7", "numpy": "1"},
        "baseline": BASELINE,
        "reference": REFERENCE,
        "made": {
            "optimum": {"seconds": 60.0, "peak_bytes": 9 * GB, "failed": None},
            "openvino-fp32": {"seconds": 30.0, "peak_bytes": 5 * GB, "failed": None},
            "ort-quantize-static": {"seconds": 100.0, "peak_bytes": 20 * GB, "failed": "too much"},
        },
        "contenders": {
            # The machine is twice as slow while the second group runs.
            "torch-fp32": entry("torch-fp32", turns(0, 8.0, 8.0, 8.0)),
            "optimum": entry("optimum", turns(0, 4.0, 4.0, 5.0) + turns(1, 8.0, 8.0, 8.0)),
            "ort-quantize-static": {
                **{key: entry("ort-quantize-static", [])[key] for key in ("label", "family", "needs")},
                "failed": "not made: too much | memory\nmore",
            },
            "openvino-fp32": entry("openvino-fp32", turns(1, 4.0, 4.4, 3.6)),
        },
    }


def test_ratios_are_taken_within_a_group(result):
    rows = {row["name"]: row for row in summarise(result)}
    assert rows["openvino-fp32"]["of_baseline"] == pytest.approx(0.5)
    assert rows["torch-fp32"]["of_baseline"] == pytest.approx(2.0)
    assert rows["openvino-fp32"]["of_reference"] == pytest.approx(0.25)
    assert rows["optimum"]["of_baseline"] == 1.0
    assert (rows["optimum"]["low_s"], rows["optimum"]["median_s"], rows["optimum"]["high_s"]) == (4.0, 6.5, 8.0)


def test_making_counts_all_that_was_made_on_the_way(result):
    row = next(row for row in summarise(result) if row["name"] == "openvino-fp32")
    assert (row["make_s"], row["make_peak_bytes"]) == (90.0, 9 * GB)


def test_race_table_has_a_line_for_each_and_says_why_one_failed(result):
    lines = race_table(result).splitlines()
    assert len(lines) == 2 + len(result["contenders"])
    assert len({line.count("|") for line in lines}) == 1
    failed = next(line for line in lines if "quantize_static" in line)
    assert "failed: not made: too much / memory" in failed and "more" not in failed
    assert "| 0.50x | 0.25x | 2,000 | 3,000 | 1.0 | 90 | 9,000 | 0.01 |" in lines[-1]


def test_a_result_that_is_not_finite_shows(result):
    bad = {"relative_l2": None, "rmse": None, "sqnr_db": None, "not_finite": 0.2}
    result["contenders"]["openvino-fp32"]["error"] = bad
    assert "not finite" in race_table(result).splitlines()[-1]
    assert "not finite" in readme.unet_step_table(result)
    assert picture_psnr(bad) == "not finite"


def test_one_that_died_on_the_way_has_no_figures(result):
    result["contenders"]["openvino-fp32"]["failed"] = "openvino-fp32: its process ended early"
    line = race_table(result).splitlines()[-1]
    assert "failed: openvino-fp32: its process ended early" in line and "0.50x" not in line


def test_component_table(result):
    lines = component_table(result).splitlines()
    assert lines[0] == "| contender | text_encoder, s | unet, s | vae, s | rest, s | PSNR |"
    assert lines[2] == "| torch, float32 | 1.00 | 4.00 | 2.00 | 1.00 | 60.0 dB |"
    assert len(lines) == 2 + 3


@pytest.mark.parametrize("table", [readme.unet_step_table, readme.pipeline_table])
def test_readme_tables_have_even_lines_and_name_the_machine(result, table):
    *rows, empty, note = table(result).splitlines()
    assert empty == "" and len({row.count("|") for row in rows}) == 1
    assert "2 threads of Abacus (AVX2)" in note and "random weights" in note and "sd15" in note
    assert any("failed: not made" in row for row in rows)


def test_unet_step_note_has_the_versions_of_both_environments(result):
    assert "torch 9, openvino 7; 2 threads" in readme.unet_step_table(result)


def test_onnx_quality_table():
    report = json.loads((readme.RESULTS / "recipes.json").read_text(encoding="utf-8"))["reports"]["int8"]
    *rows, empty, note = readme.onnx_quality_table({"reports": {"int8": {**report, "label": "int8"}}}).splitlines()
    psnr = report["similarity"]["psnr_db"]["mean"]
    assert f"| {psnr:.1f} dB |" in rows[-1] and len({row.count("|") for row in rows}) == 1
    assert empty == "" and f"{report['settings']['prompt_count']} prompts, 20 steps" in note


def test_picture(result, tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    file = draw_race(result, "sd15, unet", tmp_path / "docs" / "race.png")
    with Image.open(file) as picture:
        assert picture.width > 800 and picture.getextrema() != ((255, 255),) * 3


def test_baseline_and_reference_always_race():
    assert [one.name for one in choose(["onnx-int8"])] == [REFERENCE, BASELINE, "onnx-int8"]
    assert [one.name for one in choose(["onnx-int8"], pipelines=True)] == [REFERENCE, BASELINE, "onnx-int8"]


def test_unknown_contenders_are_refused():
    with pytest.raises(UserError, match="onnx-int3 is none of torch-fp32"):
        choose(["onnx-int3"])
    with pytest.raises(UserError, match="openvino-int8 is none of"):
        choose(["openvino-int8"], pipelines=True)


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


def test_making_tells_how_it_failed(tmp_path):
    made = make.run_watched([sys.executable, "-c", "raise ValueError('no such thing')"], tmp_path / "log", 1, GB)
    assert made["failed"] == "return code 1: ValueError: no such thing"
    done = make.run_watched(
        [sys.executable, "-c", 'print(\'{"peak_bytes": 4, "details": {}}\')'], tmp_path / "log", 1, GB
    )
    assert done["failed"] is None and done["peak_bytes"] == 4
    assert not (tmp_path / "scratch").exists()


class Declared:
    def __init__(self, name, kind, shape):
        self.name, self.type, self.shape = name, kind, shape


def test_inputs_are_given_as_the_graph_declares_them():
    given = {"sample": np.zeros((2, 4, 8, 8), np.float32), "timestep": np.float32(961.0)}
    ours = {
        "sample": Declared("sample", "tensor(float16)", [2, 4, 8, 8]),
        "timestep": Declared("timestep", "tensor(float)", []),
    }
    feed = onnx_runtime.fit_inputs(ours, given)
    assert feed["sample"].dtype == np.float16 and feed["timestep"].shape == () and feed["timestep"].dtype == np.float32
    other = {"timestep": Declared("timestep", "tensor(int64)", ["steps"])}
    feed = onnx_runtime.fit_inputs(other, given)
    assert feed["timestep"].tolist() == [961] and feed["timestep"].dtype == np.int64


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


def test_a_job_survives_its_trip():
    job = Job("optimum", "tiny-sd", "/models/tiny-sd", "unet", os.sep + "work", 2)
    assert Job.from_json(job.to_json()) == job
    assert job.part("openvino-fp32") == Path(os.sep, "work", "openvino-fp32", "unet")
