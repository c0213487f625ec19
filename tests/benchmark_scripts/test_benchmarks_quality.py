"""Quality over bytes: what counts as bytes, who beats whom, what the tables say, and that an earlier run is continued.

The results are invented; no peer is needed here.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.quality import running
from benchmarks.quality.contender import OURS, PEERS, Contender
from benchmarks.quality.points import above_frontier
from benchmarks.quality.weight_bytes import left_alone, weight_bytes

ROOT = Path(__file__).resolve().parents[2]


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


def test_what_a_library_adds_counts_in_its_own_dtype():
    layer = torch.nn.Linear(8, 4).half()
    originals = originals_of(layer)
    layer.weight = torch.nn.Parameter(torch.zeros(4, 8, dtype=torch.int8), requires_grad=False)
    layer.register_buffer("scale", torch.ones(4))  # float32
    assert weight_bytes(layer, originals) == 32 + 4 * 4 + 2 * 4
    assert left_alone(layer, originals) == {}


def test_counted_bytes_are_those_of_a_file(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Conv2d(4, 2, 3)).half()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")  # safetensors: length of the header, header, tensors
    assert weight_bytes(model, originals_of(model)) == len(data) - header


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
