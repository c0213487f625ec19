"""tiny-sd's UNet pruned by each method, before recovery and after some minutes of it.

    python benchmarks/pruning.py [--contenders auto-30 bk-sdm-base ...] [--recovered auto-30@2 bk-sdm-base@10 ...]

Each contender is a recipe that prunes the UNet and casts to float16; NAME@MINUTES is the same with so many minutes of
recovery on this machine. `sdcompress compress` makes it and `sdcompress evaluate` judges it against the original: the
same prompts, seeds and latents, each pipeline in a fresh process, latency interleaved. Minutes of recovery are minutes
of the clock: let nothing else run meanwhile. What was made is kept in --work and not made again, nor are its pictures.
Keeps each report with its raw samples in benchmarks/results/pruning.json, and draws docs/pruning.png and
docs/pruning_pictures.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.full_size import commit  # noqa: E402
from benchmarks.pruning_faces import draw_lines, draw_pictures, pruning_table  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "pruning.json"
LINES = ROOT / "docs" / "pruning.png"
PICTURES = ROOT / "docs" / "pruning_pictures.png"

# Name -> the prune step's parameters.
CONTENDERS: dict[str, dict[str, Any]] = {
    **{f"auto-{share}": {"auto": f"{share}%"} for share in (10, 20, 30, 40, 50, 60)},
    # Not bk-sdm-tiny: tiny-sd's innermost stage cannot go, since the stage before it is narrower.
    **{f"bk-sdm-{size}": {"pattern": f"bk-sdm-{size}"} for size in ("base", "small")},
    **{
        f"width-{kept}": {"heads": f"{kept}%", "feed_forward": f"{kept}%", "resnet_channels": f"{kept}%"}
        for kept in (75, 50)
    },
    "width-75-activation": {
        "heads": "75%", "feed_forward": "75%", "resnet_channels": "75%", "importance": "activation",
    },
}  # fmt: skip
RECOVERED = ("auto-30@2", "auto-50@2", "bk-sdm-base@2", "width-75@2", "bk-sdm-base@10", "auto-50@10")


def main() -> None:
    arguments = parse()
    entries = [*((name, 0.0) for name in arguments.contenders), *map(split, arguments.recovered)]
    reports: dict[str, Any] = {}
    for name, minutes in entries:
        key = f"{name}@{minutes:g}" if minutes else name
        reports[key] = measure(key, name, minutes, arguments)
    result = {
        "command": "python benchmarks/pruning.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "entries": {key: describe(key, report) for key, report in reports.items()},
        "reports": reports,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")
    print(pruning_table(result))
    draw_lines(result, LINES)
    draw_pictures(result, arguments.work, PICTURES)
    print(f"written: {RESULT}", file=sys.stderr)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="*", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--recovered", nargs="*", default=list(RECOVERED), help="NAME@MINUTES")
    parser.add_argument("--count", type=int, default=16, help="prompts")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "pruning")
    arguments = parser.parse_args()
    for entry in arguments.recovered:
        if entry.partition("@")[0] not in CONTENDERS or not entry.partition("@")[2].replace(".", "", 1).isdigit():
            parser.error(f"--recovered: {entry} is no NAME@MINUTES with a name of {', '.join(CONTENDERS)}")
    return arguments


def split(entry: str) -> tuple[str, float]:
    """Contender and minutes."""
    name, _, minutes = entry.partition("@")
    return name, float(minutes)


def recipe_of(name: str, minutes: float) -> str:
    """The contender's recipe as YAML."""
    steps: list[dict[str, Any]] = [{"prune": CONTENDERS[name]}]
    if minutes:
        steps.append({"recover": {"minutes": minutes}})
    cast = {"cast": {"dtype": "float16"}}
    components = {"unet": [*steps, cast], "*": [cast]}
    return yaml.safe_dump({"schema_version": 1, "description": name, "components": components}, sort_keys=False)


def measure(key: str, name: str, minutes: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """The report of one contender, made and judged unless --work has it, with its manifest's account of recovery."""
    folder = arguments.work / key.replace("@", "-recovered-")
    artifact, out, recipe = folder / "artifact", folder / f"report-{arguments.count}", folder / "recipe.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    text = recipe_of(name, minutes)
    if not recipe.exists() or recipe.read_text(encoding="utf-8") != text:
        recipe.write_text(text, encoding="utf-8")
        run("compress", "tiny-sd", "--recipe", str(recipe), "--out", str(artifact), "--force")
    elif not artifact.exists():
        run("compress", "tiny-sd", "--recipe", str(recipe), "--out", str(artifact), "--force")
    count = ("--count", str(arguments.count), "--noise-floor", "none", "--no-component-metrics")
    run("evaluate", "tiny-sd", str(artifact), "--out", str(out), *count)
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def run(*command: str) -> None:
    """Runs a command of sdcompress. Raises CalledProcessError when it fails."""
    subprocess.run([sys.executable, "-m", "sdcompress", *command], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def describe(key: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """What tables and plots need of a report."""
    name, _, minutes = key.partition("@")
    change, similarity = report["change"], report["similarity"]
    parts = {side: report[side]["components"]["unet"] for side in ("original", "compressed")}
    return {
        "contender": name,
        "minutes": float(minutes or 0),
        "removed": 1 - parts["compressed"]["parameters"] / parts["original"]["parameters"],
        "weights_bytes": parts["compressed"]["weights_bytes"],
        "latency_ratio": parts["compressed"]["latency_s"] / parts["original"]["latency_s"],
        "clip_score": report["compressed"]["clip_score"],
        "original_clip_score": report["original"]["clip_score"],
        "clip_drift": change["clip_score"]["difference"],
        "clip_drift_interval_95": change["clip_score"]["interval_95"],
        "psnr_db": similarity["psnr_db"]["mean"],
    }


if __name__ == "__main__":
    main()
