"""Runs contenders, each in a process of its own; what is there from an earlier run with the same inputs stays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.quality.contender import ORIGINAL, OURS, PEERS, Contender
from benchmarks.quality.ours import recipe_of
from benchmarks.quality.peers import EIGHT_BITS

ROOT = Path(__file__).resolve().parent.parent.parent
QUALITY = Path(__file__).resolve().parent
PEER_FILES = ("drawing.py", "weight_bytes.py", "peer_libraries.py", "peer_worker.py")
OWN_FILES = ("drawing.py", "own_worker.py")
# What the bytes and pictures of our contenders depend on.
OWN_ROOMS = ("quant", "steps", "components", "backends/torch")
OTHER_SEED = 1_000_000  # added to every seed for the noise floor


def make_job(
    contender: Contender,
    model: str,
    drawings: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    surroundings: str,
) -> dict[str, Any]:
    """What the contender's worker is told, and the `identity` by which a later run knows its result.

    surroundings: a text that names the model's weights and the versions the contender runs with.
    """
    shift = contender.options.get("seed_shift", 0) if contender.owner == ORIGINAL else 0
    job = {
        "contender": asdict(contender),
        "model": model,
        "recipe": recipe_of(contender) if contender.owner == OURS else None,
        "rest_options": EIGHT_BITS.get(contender.library) if contender.scope == "rest8" else None,
        "drawings": [{**drawing, "seed": drawing["seed"] + shift} for drawing in drawings],
        "options": dict(options),
    }
    # Not its label, nor the line it stands in, nor where the model lies: these change no picture.
    does = {"owner": contender.owner, "library": contender.library, "scope": contender.scope}
    known = {name: value for name, value in job.items() if name != "model"}
    known |= {"contender": {**does, "options": contender.options}}
    known |= {"surroundings": surroundings, "code": fingerprint(code_of(contender))}
    text = json.dumps(known, sort_keys=True, default=str)
    return {**job, "identity": hashlib.sha256(text.encode()).hexdigest()}


def code_of(contender: Contender) -> list[Path]:
    """The files that the contender's result depends on."""
    if runs_with_peers(contender):
        return [QUALITY / name for name in PEER_FILES]
    files = [QUALITY / name for name in OWN_FILES]
    if contender.owner == OURS:
        for room in OWN_ROOMS:
            files += sorted((ROOT / "sdcompress" / room).rglob("*.py"))
    return files


def fingerprint(files: Iterable[Path]) -> str:
    """The SHA-256 over all the files' bytes."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def runs_with_peers(contender: Contender) -> bool:
    """Whether the contender runs in the peers' environment."""
    return contender.owner == PEERS or contender.library == "peers"


def run_all(
    jobs: Mapping[str, Mapping[str, Any]],
    work: Path,
    pythons: Mapping[str, str],
    at_once: int,
    tell: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Key -> result of every job, of which `at_once` run side by side. pythons: by `peers` and `sdcompress`."""

    def run(key: str) -> dict[str, Any]:
        there = read_result(work / key, jobs[key])
        if there is not None:
            return there
        result = run_one(jobs[key], work / key, pythons)
        tell(f"{key}: {result['failed'] or format(result['seconds'], '.0f') + ' s'}")
        return result

    with ThreadPoolExecutor(at_once) as pool:
        return dict(zip(jobs, pool.map(run, jobs), strict=True))


def read_result(folder: Path, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an earlier run of this very job found; None when it did not end or the job was another."""
    file = folder / "result.json"
    if not file.is_file():
        return None
    result = dict(json.loads(file.read_text(encoding="utf-8")))
    return result if result["identity"] == job["identity"] else None


def run_one(job: Mapping[str, Any], folder: Path, pythons: Mapping[str, str]) -> dict[str, Any]:
    """The result of the job, run anew in a process of its own with one thread."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file = folder / "job.json"
    file.write_text(json.dumps(job, indent=1, default=str), encoding="utf-8")
    peers = runs_with_peers(Contender(**job["contender"]))
    module = f"benchmarks.quality.{'peer_worker' if peers else 'own_worker'}"
    command = [pythons["peers" if peers else "sdcompress"], "-m", module, str(file)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with (folder / "log.txt").open("wb") as log:
        code = subprocess.run(command, cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT).returncode
    result = read_result(folder, job)
    if code or result is None:
        tail = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
        result = {"identity": job["identity"], "failed": f"ended with code {code}: {' '.join(tail)}", "seconds": 0.0}
    return result
