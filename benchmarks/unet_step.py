"""One inference of one component, such as a guidance step of Stable Diffusion 1.5's UNet: sdcompress and its peers.

    python benchmarks/unet_step.py [--model sd15|tiny-sd|FOLDER] [--component unet] [--contenders ...] [--rounds 5]

A catalog name gets random weights at full size, which say nothing about quality but all about time. Inputs are those
of a drawing: batch 2 for guidance, the pipeline's own size; calibration inputs come from other prompts. Each contender
is made in a process of its own, measured alone, and then raced in turns (contenders/race.py says how). Every output is
compared with torch's in float32, so that a fast wrong answer shows. What was made is kept in --work and not made again;
the seconds it took then stay with it, and a table counts in those of all it was made from. Exports are of whole
pipelines, quantizations of the component alone. OpenVINO and NNCF get an environment of their own in --work.
Keeps raw samples in benchmarks/results/unet_step.json and draws docs/unet_step.png for sd15's UNet; for other models
and components both go to --work. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402

from benchmarks.contenders.catalog import BASELINE, REFERENCE, Contender, choose, with_needs  # noqa: E402
from benchmarks.contenders.contest import make_all, measure  # noqa: E402
from benchmarks.contenders.inputs import record_inputs  # noqa: E402
from benchmarks.contenders.job import Job  # noqa: E402
from benchmarks.contenders.models import is_random, open_model  # noqa: E402
from benchmarks.contenders.plot import draw_race  # noqa: E402
from benchmarks.contenders.race import Entrant  # noqa: E402
from benchmarks.contenders.summary import race_table  # noqa: E402
from benchmarks.full_size import commit  # noqa: E402
from benchmarks.virtual_environment import make_environment, versions_in  # noqa: E402
from sdcompress.environment import describe_cpu, describe_environment  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "unet_step.json"
PICTURE = ROOT / "docs" / "unet_step.png"
REQUIREMENTS = ROOT / "benchmarks" / "openvino-requirements.txt"
COMPONENTS = ("unet", "vae_decoder", "text_encoder", "text_encoder_2")


def main() -> None:
    arguments = parse()
    source, model, work = open_model(arguments.model, arguments.work)
    contenders = choose(arguments.contenders)
    inputs = record_inputs(source, work, arguments.threads, arguments.calibration_prompts, arguments.calibration_steps)
    pythons, versions = find_pythons(contenders, arguments.work)
    jobs = {
        one.name: Job(one.name, source, model, arguments.component, str(work), arguments.threads)
        for one in with_needs(contenders)
    }
    made = make_all(contenders, jobs, pythons, int(arguments.make_memory_gb * 1e9), arguments.remake)
    if arguments.make_only:
        return
    entrants = {one.name: enter(one, jobs[one.name], pythons) for one in contenders if one.family in pythons}
    raced, race = measure(contenders, jobs, entrants, made, int(arguments.memory_gb * 1e9), arguments.rounds)
    result = {
        "command": "python benchmarks/unet_step.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": {**describe_environment(), "instructions": describe_cpu()["instructions"]},
        "openvino_environment": versions,
        "model": arguments.model,
        "weights": "random" if is_random(arguments.model) else "its own",
        "component": arguments.component,
        "inputs": inputs,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "memory_gb": arguments.memory_gb,
        "baseline": BASELINE,
        "reference": REFERENCE,
        "made": made,
        "groups": race["groups"],
        "contenders": raced,
    }
    kept = arguments.model == "sd15" and arguments.component == "unet"
    out = arguments.out or (RESULT if kept else work / f"{arguments.component}_step.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    picture = draw_race(
        result, describe_race(result), PICTURE if kept and arguments.out is None else out.with_suffix(".png")
    )
    print(race_table(result))
    print(f"written: {out} {picture}", file=sys.stderr)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd15", help="catalog name, tiny-sd, or a diffusers folder")
    parser.add_argument("--component", default="unet", choices=COMPONENTS)
    parser.add_argument("--contenders", nargs="+", help="names from contenders/catalog.py; default: the usual ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--work", type=Path, default=ROOT / "out" / "bench", help="about 40 GB are needed here for sd15"
    )
    parser.add_argument(
        "--remake", nargs="*", default=[], help="contenders to make again although their files are there"
    )
    parser.add_argument("--calibration-prompts", type=int, default=4)
    parser.add_argument("--calibration-steps", type=int, default=5, help="steps a prompt, each one a calibration input")
    parser.add_argument("--make-only", action="store_true", help="stop before anything is timed")
    free = psutil.virtual_memory().available / 1e9
    parser.add_argument(
        "--memory-gb", type=float, default=round(0.8 * free, 1), help="what a group's peaks may come to"
    )
    parser.add_argument("--make-memory-gb", type=float, default=round(0.95 * free, 1), help="where making is stopped")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def find_pythons(contenders: Sequence[Contender], work: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Family -> the Python that runs it, and the versions in OpenVINO's environment; a failed install is recorded."""
    pythons = dict.fromkeys(("torch", "onnxruntime", "sdcompress"), sys.executable)
    if not any(one.family == "openvino" for one in contenders):
        return pythons, {}
    try:
        python = make_environment(work.resolve() / "venv-openvino", REQUIREMENTS, "OpenVINO and NNCF, about 1 GB")
        return {**pythons, "openvino": python}, versions_in(python, ("openvino", "nncf", "onnx", "numpy"))
    except subprocess.CalledProcessError as error:
        return pythons, {"failed": f"{' '.join(map(str, error.cmd))} returned {error.returncode}"}


def enter(contender: Contender, job: Job, pythons: dict[str, str]) -> Entrant:
    """The contender, ready to be started in the Python it needs."""
    options = dict(contender.options)
    return Entrant(
        name=contender.name,
        command=(pythons[contender.family], "-m", "benchmarks.contenders.component_worker"),
        load={"job": job.to_json(), "module": contender.module, "options": options},
        log=Path(job.work) / "logs" / f"{contender.name}-{job.component}.log",
        threads=job.threads,
    )


def describe_race(result: dict[str, Any]) -> str:
    """The picture's title: what was run, on which machine."""
    machine = result["environment"]
    shape = "x".join(map(str, next(iter(result["inputs"]["shapes"][result["component"]].values()))))
    return f"{result['model']}, {result['component']}, input {shape}; threads: {result['threads']} of {machine['cpu']}"


if __name__ == "__main__":
    main()
