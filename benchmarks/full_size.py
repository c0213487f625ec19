"""A model at full size, random float16 weights: memory, time and bytes of compressing and reloading it.

    python benchmarks/full_size.py [--model sdxl] [--recipes int8 mixed] [--work DIR] [--keep]

Claims held up: the peak memory of compressing is a small constant whatever the model's size; the artifact's bytes are
the plan's; what is reloaded computes what the dequantized weights compute (sd15), and draws: one denoising step at
512x512, decoded, in a fresh process. Random weights say nothing about quality. Each compression runs in a fresh
process; its peak is the kernel's VmHWM. A recipe that calibrates does so on one prompt in two steps at 512x512, which
its memory hardly depends on. Writes benchmarks/results/full_size.json (full_size_MODEL.json for others than sd15).
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
from sdcompress import load_recipe, open_source  # noqa: E402
from sdcompress.environment import describe_environment  # noqa: E402
from sdcompress.planning.plan import make_plan  # noqa: E402
from sdcompress.planning.recipe import Recipe, dump_recipe  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
CALIBRATION = {"prompt_count": 1, "num_inference_steps": 2, "height": 512, "width": 512}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd15", help="catalog name")
    parser.add_argument("--recipes", nargs="+", default=["fp16", "int8", "nf4-conv", "mixed", "nf4", "pruned-int8"])
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".cache" / "full_size", help="12 GB are needed here, for sdxl 25"
    )
    parser.add_argument("--runs", type=int, default=3, help="compressions of each recipe")
    parser.add_argument("--keep", action="store_true", help="keep the model and the artifacts")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/full_size[_MODEL].json")
    arguments = parser.parse_args()
    model = arguments.model
    out = arguments.out or RESULTS / ("full_size.json" if model == "sd15" else f"full_size_{model}.json")
    source = arguments.work / f"{model}-random"
    if not (source / ".whole").exists():
        shutil.rmtree(source, ignore_errors=True)
        build_random_pipeline(model, source)
        (source / ".whole").touch()
    result: dict[str, Any] = {
        "command": "python benchmarks/full_size.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": describe_environment(),
        "model": f"{model}, random float16 weights, seed 0",
        "original_size_bytes": open_source(str(source)).size_bytes,
        "copy_s": [copy_seconds(source, arguments.work / "copy") for _ in range(arguments.runs)],
        "recipes": {},
    }
    for recipe in arguments.recipes:
        result["recipes"][recipe] = measure(model, source, recipe, arguments.work / recipe, arguments.runs)
        if not arguments.keep:
            shutil.rmtree(arguments.work / recipe)
        print(recipe, json.dumps(result["recipes"][recipe]), flush=True)
    if not arguments.keep:
        shutil.rmtree(arguments.work)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {out}")


def measure(model: str, source: Path, name: str, out: Path, runs: int) -> dict[str, Any]:
    """Peak bytes and seconds of each compression, the artifact's bytes, how far a reload is off, and a step of it."""
    recipe = load_recipe(name)
    recipe = recipe.model_copy(update={"calibration": recipe.calibration.model_copy(update=CALIBRATION)})
    file = out.with_name(f"{out.name}.yaml")
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    plan = make_plan(recipe, open_source(str(source)))
    samples = []
    for _ in range(runs):
        shutil.rmtree(out, ignore_errors=True)
        samples.append(compress_in_fresh_process(source, str(file), out))
    file.unlink()
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
        # What is held in float32 beside the artifact is twice its size: too much for larger models.
        "relative_difference_to_dequantized": reload_in_fresh_process(out) if _is_small(model, recipe) else None,
        "one_step": draw_in_fresh_process(out),
    }


def _is_small(model: str, recipe: Recipe) -> bool:
    return model == "sd15" and recipe.target == "torch"


def compress_in_fresh_process(source: Path, recipe: str, out: Path) -> dict[str, float]:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from sdcompress.cli.main import main\n"
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


def draw_in_fresh_process(artifact: Path) -> dict[str, Any]:
    """One denoising step and its picture, 512x512: seconds to open and to draw, peak bytes, whether it is finite."""
    script = (
        "import json, sys, time; from pathlib import Path\n"
        "import numpy as np, torch, sdcompress\n"
        "from sdcompress.evaluation.worker.process_meters import peak_bytes\n"
        "start = time.perf_counter()\n"
        "pipeline = sdcompress.open_pipeline(sys.argv[1], device='cpu')\n"
        "opened = time.perf_counter()\n"
        "generator = torch.Generator().manual_seed(0)\n"
        "picture = pipeline('a lighthouse', num_inference_steps=1, height=512, width=512, generator=generator,\n"
        "                   output_type='np').images[0]\n"
        "print(json.dumps({'open_s': opened - start, 'draw_s': time.perf_counter() - opened,\n"
        "                  'peak_bytes': peak_bytes(), 'finite': bool(np.isfinite(picture).all()),\n"
        "                  'flat': bool(picture.min() == picture.max())}))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, str(artifact)], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
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
