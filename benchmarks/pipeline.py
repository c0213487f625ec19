"""Whole pictures with whole pipelines: torch, optimum on ONNX Runtime, and what sdcompress's ONNX recipes made.

    python benchmarks/pipeline.py [--model sd15|tiny-sd|sdxl|FOLDER] [--steps 20] [--rounds 3] [--contenders ...]

The same prompt, initial latents and steps with guidance, at the pipeline's own size unless --size gives another, no
safety checker anywhere. The race is that of unet_step.py, with which the files in --work are shared: contenders in
processes of their own, first alone, then in turns in groups that fit into memory. Random weights (any catalog name) say
nothing about the picture; how far it is from torch's in float32 (PSNR) still shows a wrong result.
sdxl needs 60 GB in --work and, with float32 contenders, more than 24 GB of memory. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
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
from benchmarks.contenders.race import Entrant  # noqa: E402
from benchmarks.contenders.summary import component_table, race_table  # noqa: E402
from benchmarks.full_size import commit  # noqa: E402
from sdcompress.calibration.prompts import default_prompts, is_tiny_sd  # noqa: E402
from sdcompress.environment import describe_cpu, describe_environment  # noqa: E402
from sdcompress.sources.opening import open_source  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "pipeline.json"
PIPELINES = "pipeline"  # the component's place in file names


def main() -> None:
    arguments = parse()
    source, model, work = open_model(arguments.model, arguments.work)
    contenders = choose(arguments.contenders, pipelines=True)
    if any(one.calibrated for one in with_needs(contenders)):
        record_inputs(source, work, arguments.threads, arguments.calibration_prompts, arguments.calibration_steps)
    drawing = describe_drawing(source, model, arguments)
    jobs = {
        one.name: Job(one.name, source, model, PIPELINES, str(work), arguments.threads)
        for one in with_needs(contenders)
    }
    pythons = dict.fromkeys(("torch", "onnxruntime", "sdcompress"), sys.executable)
    made = make_all(contenders, jobs, pythons, int(arguments.make_memory_gb * 1e9), arguments.remake)
    if arguments.make_only:
        return
    entrants = {one.name: enter(one, jobs[one.name], drawing) for one in contenders}
    raced, race = measure(contenders, jobs, entrants, made, int(arguments.memory_gb * 1e9), arguments.rounds)
    result = {
        "command": "python benchmarks/pipeline.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": {**describe_environment(), "instructions": describe_cpu()["instructions"]},
        "model": arguments.model,
        "weights": "random" if is_random(arguments.model) else "its own",
        "unit": "picture",
        "drawing": drawing,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "memory_gb": arguments.memory_gb,
        "baseline": BASELINE,
        "reference": REFERENCE,
        "made": made,
        "groups": race["groups"],
        "contenders": raced,
    }
    out = arguments.out or (RESULT if arguments.model == "sd15" else work / "pipeline.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(race_table(result))
    print(f"\n{component_table(result)}")
    print(f"written: {out}", file=sys.stderr)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd15", help="catalog name, tiny-sd, or a diffusers folder")
    parser.add_argument("--contenders", nargs="+", help="names from contenders/catalog.py; default: the usual ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, help="pixels of a side; default: the pipeline's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "bench", help="shared with unet_step.py")
    parser.add_argument(
        "--remake", nargs="*", default=[], help="contenders to make again although their files are there"
    )
    parser.add_argument("--calibration-prompts", type=int, default=4, help="as in unet_step.py")
    parser.add_argument("--calibration-steps", type=int, default=5, help="as in unet_step.py")
    parser.add_argument("--make-only", action="store_true", help="stop before anything is timed")
    free = psutil.virtual_memory().available / 1e9
    parser.add_argument(
        "--memory-gb", type=float, default=round(0.8 * free, 1), help="what a group's peaks may come to"
    )
    parser.add_argument("--make-memory-gb", type=float, default=round(0.95 * free, 1), help="where making is stopped")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def describe_drawing(source: str, model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What every contender draws: prompt, seed, the latents' shape and the pipeline call's options."""
    unet = json.loads((Path(model) / "unet" / "config.json").read_text(encoding="utf-8"))
    vae = json.loads((Path(model) / "vae" / "config.json").read_text(encoding="utf-8"))
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    side = unet["sample_size"] * factor if arguments.size is None else arguments.size
    prompts = default_prompts(is_tiny_sd(open_source(source)))
    guidance = 7.5 if prompts.guidance_scale is None else prompts.guidance_scale
    return {
        "prompt": prompts.prompts[0],
        "seed": 0,
        "latents": [1, unet["in_channels"], side // factor, side // factor],
        "options": {
            "num_inference_steps": arguments.steps,
            "guidance_scale": guidance,
            "height": side,
            "width": side,
        },
    }


def enter(contender: Contender, job: Job, drawing: dict[str, Any]) -> Entrant:
    """The contender, ready to be started."""
    return Entrant(
        name=contender.name,
        command=(sys.executable, "-m", "benchmarks.contenders.pipeline_worker"),
        load={
            "job": job.to_json(),
            "family": contender.family,
            "options": dict(contender.options),
            "drawing": drawing,
        },
        log=Path(job.work) / "logs" / f"{contender.name}-{PIPELINES}.log",
        threads=job.threads,
    )


if __name__ == "__main__":
    main()
