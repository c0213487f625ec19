"""Stable Diffusion 1.5 at full size, random float16 weights: memory, time and bytes of compressing and reloading it.

    python benchmarks/full_size.py [--recipes int8 mixed] [--work DIR] [--keep]

Claims held up: the peak memory of compressing is a small constant whatever the model's size; the artifact's bytes are
the plan's; what is reloaded computes what the dequantized weights compute. Random weights say nothing about quality.
Each compression runs in a fresh process; its peak is the kernel's VmHWM. Writes benchmarks/results/full_size.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.random_pipeline import build_random_pipeline  # noqa: E402
from sdcompress import load_recipe, make_plan, open_source  # noqa: E402
from sdcompress.environment import describe_environment  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "full_size.json"
MODEL = "sd15"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["fp16", "int8", "nf4-conv", "mixed", "nf4", "pruned-int8"])
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "full_size", help="12 GB are needed here")
    parser.add_argument("--runs", type=int, default=3, help="compressions of each recipe")
    parser.add_argument("--keep", action="store_true", help="keep the model and the artifacts")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    source = arguments.work / f"{MODEL}-random"
    if not (source / ".whole").exists():
        shutil.rmtree(source, ignore_errors=True)
        build_random_pipeline(MODEL, source)
        (source / ".whole").touch()
    result: dict[str, Any] = {
        "command": "python benchmarks/full_size.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": describe_environment(),
        "model": f"{MODEL}, random float16 weights, seed 0",
        "original_size_bytes": open_source(str(source)).size_bytes,
        "copy_s": [copy_seconds(source, arguments.work / "copy") for _ in range(arguments.runs)],
        "recipes": {},
    }
    for recipe in arguments.recipes:
        result["recipes"][recipe] = measure(source, recipe, arguments.work / recipe, arguments.runs)
        if not arguments.keep:
            shutil.rmtree(arguments.work / recipe)
        print(recipe, json.dumps(result["recipes"][recipe]), flush=True)
    if not arguments.keep:
        shutil.rmtree(arguments.work)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {arguments.out}")


def measure(source: Path, recipe: str, out: Path, runs: int) -> dict[str, Any]:
    """Peak bytes and seconds of each compression, the artifact's bytes, and how far a reload is from its weights."""
    plan = make_plan(load_recipe(recipe), open_source(str(source)))
    samples = []
    for _ in range(runs):
        shutil.rmtree(out, ignore_errors=True)
        samples.append(compress_in_fresh_process(source, recipe, out))
    artifact = open_source(str(out))
    return {
        "predicted_peak_bytes": plan.peak_bytes,
        "peak_bytes": [sample["peak_bytes"] for sample in samples],
        "seconds": [sample["seconds"] for sample in samples],
        "size_bytes": artifact.size_bytes,
        "predicted_weights_bytes": sum(spec.weights_bytes for spec in plan.components_after.values()),
        "weights_bytes": artifact.weights_bytes,
        "parameters": artifact.parameters,
        "unet_bits_per_weight": artifact.components["unet"].bits_per_weight,
        "relative_difference_to_dequantized": reload_in_fresh_process(out),
    }


def compress_in_fresh_process(source: Path, recipe: str, out: Path) -> dict[str, float]:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from sdcompress.cli import main\n"
        "sys.argv = ['sdcompress', 'compress', *sys.argv[1:]]\n"
        "start = time.perf_counter()\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(time.perf_counter() - start, int(status.split('VmHWM:')[1].split()[0]) * 1024)\n"
    )
    command = [sys.executable, "-c", script, str(source), "--recipe", recipe, "--out", str(out)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    seconds, peak = answer.stdout.split()[-2:]
    return {"seconds": float(seconds), "peak_bytes": int(peak)}


def reload_in_fresh_process(artifact: Path) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).with_name("reload_check.py")), str(artifact)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return dict(json.loads(answer.stdout.splitlines()[-1]))


def copy_seconds(source: Path, to: Path) -> float:
    """Seconds that copying the files and syncing them takes: the yardstick for writing an artifact."""
    start = time.perf_counter()
    shutil.copytree(source, to)
    os.sync()
    seconds = time.perf_counter() - start
    shutil.rmtree(to)
    return seconds


def commit() -> str:
    answer = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return answer.stdout.strip()


if __name__ == "__main__":
    main()
