"""Every shipped recipe on the built-in tiny-sd, compressed and evaluated against the original.

    python benchmarks/recipes.py [--recipes int8 mixed] [--count 32]

Runs `sdcompress run` for each recipe: the same prompts, seeds and latents, each pipeline in a fresh process, latency
interleaved. Keeps each report with its raw samples in benchmarks/results/recipes.json and int8's pictures in docs/.
Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.full_size import commit  # noqa: E402
from sdcompress.planning.recipe import shipped_recipes  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "recipes.json"
PICTURES = ROOT / "docs" / "int8.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(shipped_recipes()))
    parser.add_argument("--count", type=int, default=32, help="prompts")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "recipes")
    arguments = parser.parse_args()
    reports = {}
    for recipe in arguments.recipes:
        out = arguments.work / recipe
        command = [sys.executable, "-m", "sdcompress", "run", "tiny-sd", "--recipe", recipe, "--out", str(out)]
        # The original's own noise and single components are the same for every recipe, or another benchmark's.
        options = ["--count", str(arguments.count), "--noise-floor", "none", "--no-component-metrics", "--force"]
        subprocess.run([*command, *options], check=True, cwd=ROOT)
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        report["command"] = f"sdcompress run tiny-sd --recipe {recipe} --count {arguments.count}"
        reports[recipe] = report
        if recipe == "int8":
            PICTURES.parent.mkdir(exist_ok=True)
            shutil.copyfile(out / "images.png", PICTURES)
    command = " ".join(["python benchmarks/recipes.py", *sys.argv[1:]])
    result = {"command": command, "commit": commit(), "reports": reports}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {RESULT}")


if __name__ == "__main__":
    main()
