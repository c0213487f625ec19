"""Quality over bytes: what counts as bytes, who beats whom, and that an earlier run is continued.

The results are invented; no peer is needed here.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from benchmarks.quality import running
from benchmarks.quality.contender import COUNTED, OURS, PEERS, SCOPES, Contender
from benchmarks.quality.ours import recipe_of
from benchmarks.quality.points import above_frontier, frontier, make_points, paired_difference
from benchmarks.quality.weight_bytes import left_alone, spare_bytes, stored_tensors, weight_bytes

ROOT = Path(__file__).resolve().parents[2]


class Halves(torch.Tensor):
    """A tensor subclass as torchao's: eight-bit codes of four bits each, a scale a row."""

    @staticmethod
    def __new__(cls, qdata, scale):
        return torch.Tensor._make_wrapper_subclass(cls, qdata.shape, dtype=scale.dtype)

    def __init__(self, qdata, scale):
        self.qdata, self.scale, self.target_dtype = qdata, scale, torch.int4

    def __tensor_flatten__(self):
        return ["qdata", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].qdata, args[0].scale)
        raise NotImplementedError(function)


def point(name, owner, size, *psnr, scope="unet", **others):
    return {
        "key": f"{name}@{scope}",
        "name": name,
        "label": name,
        "owner": owner,
        "family": name.rpartition("-")[0],
        "bits": 4,
        "scope": scope,
        "if_packed": False,
        "failed": None,
        "component_bytes": {"text_encoder": 0, "unet": size, "vae": 0},
        "total_bytes": size,
        "psnr_db": list(psnr),
        "clip_change": [0.1 * value for value, _ in enumerate(psnr)],
        **others,
    }


def originals_of(module):
    return {name: tuple(value.shape) for name, value in module.named_parameters()}


def test_floats_count_as_float16_whatever_their_dtype():
    layer = torch.nn.Linear(8, 4)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert weight_bytes(layer.to(dtype), originals_of(layer)) == 2 * (8 * 4 + 4)


def test_what_a_library_adds_counts_in_its_own_dtype():
    layer = torch.nn.Linear(8, 4).half()
    originals = originals_of(layer)
    layer.weight = torch.nn.Parameter(torch.zeros(4, 8, dtype=torch.int8), requires_grad=False)
    layer.register_buffer("scale", torch.ones(4))  # float32
    assert weight_bytes(layer, originals) == 32 + 4 * 4 + 2 * 4
    assert left_alone(layer, originals) == {}


def test_tensor_subclasses_are_taken_apart():
    layer = torch.nn.Linear(8, 4, bias=False)
    originals = originals_of(layer)
    layer.weight = torch.nn.Parameter(Halves(torch.zeros(4, 8, dtype=torch.int8), torch.ones(4).half()), False)
    assert list(stored_tensors(layer)) == ["weight.qdata", "weight.scale"]
    assert weight_bytes(layer, originals) == 32 + 8
    assert spare_bytes(layer) == 16  # 32 codes of 4 bits, one a byte
    assert left_alone(layer, originals) == {}


def test_layers_left_alone_are_matrices_still_in_float():
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.LayerNorm(4), torch.nn.Conv2d(4, 2, 3))
    originals = originals_of(model)
    assert left_alone(model, originals) == {"0": 32, "2": 72}
    model[0].weight = torch.nn.Parameter(torch.zeros(4, 8, dtype=torch.int8), requires_grad=False)
    assert left_alone(model, originals) == {"2": 72}


def test_counted_bytes_are_those_of_a_file(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Conv2d(4, 2, 3)).half()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")  # safetensors: length of the header, header, tensors
    assert weight_bytes(model, originals_of(model)) == len(data) - header


def test_frontier_is_better_with_every_byte():
    points = [
        point("a", OURS, 10, 30.0),
        point("b", OURS, 20, 25.0),
        point("c", OURS, 10, 20.0),
        point("d", OURS, 30, 40.0),
    ]
    assert [one["key"] for one in frontier(points)] == ["a@unet", "d@unet"]


def test_a_peer_is_beaten_by_no_more_bytes_and_no_less_quality():
    ours = point("ours-4", OURS, 100, 30.0, 32.0)
    same = point("peer-same", PEERS, 100, 30.0, 32.0)
    smaller = point("peer-smaller", PEERS, 99, 20.0, 20.0)
    better = point("peer-better", PEERS, 120, 33.0, 33.0)
    listed = above_frontier([ours, same, smaller, better, point("peer-failed", PEERS, 1, failed="no")])
    assert [entry["peer"] for entry in listed] == ["peer-smaller@unet", "peer-better@unet"]
    assert listed[0]["ours"] is None and listed[0]["behind_db"] is None
    assert listed[1]["ours"] == "ours-4@unet"
    assert listed[1]["behind_db"]["mean"] == pytest.approx(2.0)


def test_difference_is_paired_by_prompt():
    first, second = point("a", PEERS, 1, 30.0, 20.0, None), point("b", OURS, 1, 29.0, 19.0, 50.0)
    found = paired_difference(first, second)
    assert found["mean"] == 1.0
    assert found["interval_95"] == (1.0, 1.0)


def test_loosely_stored_codes_give_a_second_point_as_if_packed():
    contender = Contender("torchao-intx4", "torchao", PEERS, "torchao", 4)
    found = {
        "failed": None,
        "component_bytes": {"text_encoder": 10, "unet": 100, "vae": 10},
        "packed_bytes": {"text_encoder": 10, "unet": 60, "vae": 10},
        "left_alone": {"unet": {"conv_in": 25}},
    }
    parameters = {"text_encoder": 5, "unet": 50, "vae": 5}
    real, dense = make_points(contender, found, parameters, {"psnr_db": [1.0], "clip_change": [0.0]})
    assert (real["total_bytes"], real["if_packed"], dense["total_bytes"], dense["if_packed"]) == (120, False, 80, True)
    assert real["left_in_float"] == {"unet": 0.5} and real["layers_left_in_float"] == {"unet": 1}


def test_recipes_quantize_what_the_scope_says():
    parts = {}
    for scope in SCOPES:
        recipe = yaml.safe_load(recipe_of(Contender("x", "x", OURS, "x", 4, scope, options={"format": "int4"})))
        parts[scope] = {
            name: steps[1]["quantize"]["format"] for name, steps in recipe["components"].items() if len(steps) == 2
        }
    assert parts["unet"] == {"unet": "int4"}
    assert parts["all"] == dict.fromkeys(COUNTED, "int4")
    assert parts["rest8"] == {"text_encoder": "int8", "unet": "int4", "vae": "int8"}


def test_peers_pins_agree_with_the_main_set():
    pins = {}
    for file in ("benchmarks/peers-requirements.txt", "constraints.txt"):
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        pins[file] = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    peers, main = pins["benchmarks/peers-requirements.txt"], pins["constraints.txt"]
    assert {name: (peers[name], main[name]) for name in peers.keys() & main.keys() if peers[name] != main[name]} == {}
    assert {"torchao", "optimum-quanto", "sdnq"} <= peers.keys()


@pytest.fixture
def pretender(tmp_path, monkeypatch):
    """A worker that only writes down that it ran; the job of key `fails` ends with code 3."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, pathlib, sys\n"
        "file = pathlib.Path(sys.argv[-1]); job = json.loads(file.read_text())\n"
        f"open({str(tmp_path / 'ran')!r}, 'a').write(job['contender']['name'] + '\\n')\n"
        "if job['contender']['name'] == 'fails': sys.exit('boom')\n"
        "answer = {'identity': job['identity'], 'failed': None, 'seconds': 1.0}\n"
        "(file.parent / 'result.json').write_text(json.dumps(answer))\n"
    )
    inner = subprocess.run

    def run(command, **others):
        return inner([sys.executable, str(script), command[-1]], **others)

    monkeypatch.setattr(running.subprocess, "run", run)
    return tmp_path


def job_of(name, **options):
    contender = Contender(name, name, PEERS, "family", 4, library="sdnq", options=options)
    return running.make_job(contender, "model", [{"index": 0, "prompt": "a", "seed": 0}], {}, "versions")


def names_run(folder):
    return (folder / "ran").read_text().split()


def test_what_was_drawn_is_not_drawn_again(pretender):
    def run(**jobs):
        return running.run_all(jobs, pretender / "work", {"peers": "p", "sdcompress": "s"}, 2, lambda text: None)

    assert run(a=job_of("a"), b=job_of("b"))["a"]["failed"] is None
    run(a=job_of("a"), b=job_of("b"), c=job_of("c"))
    assert sorted(names_run(pretender)) == ["a", "b", "c"]
    run(a=job_of("a", group_size=32))
    assert sorted(names_run(pretender)) == ["a", "a", "b", "c"]


def test_identity_holds_what_the_result_depends_on():
    assert job_of("a")["identity"] == job_of("a")["identity"]
    contender = Contender("a", "a", PEERS, "family", 4, library="sdnq")
    drawings = [{"index": 0, "prompt": "a", "seed": 0}]
    identities = {
        running.make_job(contender, "model", drawings, {}, "versions")["identity"],
        running.make_job(contender, "model", drawings, {}, "other versions")["identity"],
        running.make_job(contender, "model", [], {}, "versions")["identity"],
        running.make_job(contender, "model", drawings, {"num_inference_steps": 2}, "versions")["identity"],
    }
    assert len(identities) == 4
    assert json.loads(json.dumps(job_of("a")["contender"])) == asdict(
        Contender("a", "a", PEERS, "family", 4, library="sdnq")
    ) | {"options": {}}
