"""Searched recipes against the shipped ones at the same bytes, and how well the search's predictions hold.

    python benchmarks/search.py [--model tiny-sd] [--recipes int8 int4-gptq int3-gptq] [--prompts FILE] [--count 32]

For each shipped recipe `sdcompress search` looks for a recipe of the same bytes; the scores are made once. Both
artifacts are evaluated beside the original with the same prompts and seeds, none of which the search saw. The gain is
the mean paired difference of same-seed PSNR. Then random allocations are drawn and compared with what the scores
predict. All samples are kept in benchmarks/results/search_MODEL.json.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import sdcompress  # noqa: E402
from benchmarks.full_size import commit  # noqa: E402
from sdcompress.calibration.prompt_files import read_prompts  # noqa: E402
from sdcompress.calibration.prompts import split_prompts  # noqa: E402
from sdcompress.environment import describe_environment  # noqa: E402
from sdcompress.evaluation.settings import EvaluationSettings  # noqa: E402
from sdcompress.searching.allocate import predict  # noqa: E402
from sdcompress.searching.result import SearchResult, psnr_db, read_result  # noqa: E402
from sdcompress.searching.search import GRADIENT_PROMPTS, Search, SearchSettings, first_prompts  # noqa: E402
from sdcompress.searching.target import parse_target  # noqa: E402
from sdcompress.searching.trials import Trials  # noqa: E402

RECIPES = ("int8", "int4-gptq", "int3-gptq")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-sd")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--prompts", type=Path, default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--count", type=int, default=32, help="prompts of the evaluation")
    parser.add_argument("--allocations", type=int, default=20, help="random allocations")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "search")
    arguments = parser.parse_args()
    model, work = arguments.model, arguments.work / Path(arguments.model).name
    drawing = {"prompts": arguments.prompts, "steps": arguments.steps, "guidance": arguments.guidance}
    rows: dict[str, Any] = {}
    first: Path | None = None
    for recipe in arguments.recipes:
        plan = sdcompress.make_plan(model, recipe)
        size = sum(spec.weights_bytes for spec in plan.components_after.values())
        start_s = time.monotonic()
        found = sdcompress.search(
            model, work / recipe, size=f"{size}B", earlier=first, force=True, **drawing if first is None else {}
        )
        rows[recipe] = {"search_s": round(time.monotonic() - start_s, 1), "searched_bytes": found.size_bytes}
        first = first or work / recipe
        sdcompress.compress(model, recipe, work / f"{recipe}-shipped", force=True)
        sdcompress.compress(model, work / recipe / "recipe.yaml", work / f"{recipe}-searched", force=True)
        rows[recipe] |= {"shipped_bytes": size} | compare(arguments, work, recipe)
        print(
            recipe, json.dumps({name: value for name, value in rows[recipe].items() if name != "samples"}), flush=True
        )
    assert first is not None
    predictions = check_predictions(read_result(first), arguments.allocations)
    result = {
        "command": " ".join(sys.argv),
        "commit": commit(),
        "environment": describe_environment(),
        "model": Path(model).name,
        "rows": rows,
        "predictions": predictions,
    }
    file = ROOT / "benchmarks" / "results" / f"search_{Path(model).name.replace('-', '_')}.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {file}")


def compare(arguments: argparse.Namespace, work: Path, recipe: str) -> dict[str, Any]:
    """Return the PSNR of both artifacts, and the gain with its interval, over the same prompts and seeds."""
    from sdcompress.report.statistics import mean_interval

    options: dict[str, Any] = {"prompt_count": arguments.count, "noise_floor": (), "component_metrics": False}
    if arguments.prompts is not None:
        _, others = split_prompts(read_prompts(arguments.prompts), GRADIENT_PROMPTS)
        options |= {"prompts": others, "prompt_count": min(arguments.count, len(others.prompts)), "use_clip": False}
    options |= {"num_inference_steps": arguments.steps, "guidance_scale": arguments.guidance}
    samples = {}
    for side in ("shipped", "searched"):
        folder = work / f"{recipe}-{side}-report"
        report = sdcompress.evaluate(
            arguments.model, work / f"{recipe}-{side}", folder, settings=EvaluationSettings(**options), force=True
        )
        report.save(folder)
        samples[side] = {sample.index: sample.psnr_db for sample in report.samples if sample.psnr_db is not None}
    both = sorted(samples["shipped"].keys() & samples["searched"].keys())  # others are blocked or identical
    gains = [samples["searched"][index] - samples["shipped"][index] for index in both]
    means = {f"{side}_psnr_db": mean([values[index] for index in both]) for side, values in samples.items()}
    return {**means, "gain_db": mean(gains), "gain_interval_95": mean_interval(gains), "samples": samples}


def check_predictions(found: SearchResult, count: int) -> dict[str, Any]:
    """Return predicted and measured PSNR of random allocations, and their rank correlation (Spearman)."""
    from scipy.stats import spearmanr

    rng = random.Random(0)
    settings = SearchSettings(calibration=type(SearchSettings().calibration)(**found.calibration))
    source = sdcompress.open_source(found.model, **found.source_options)
    search = Search(source, parse_target(size="0.5x"), settings, lambda *_: {}, earlier=found)
    trials = Trials(source, first_prompts(settings.calibration, 4), search.statistics())
    rows = []
    for _ in range(count):
        # Each allocation leans to some bits, so that sizes and damages differ by much, and is random otherwise.
        weights = [rng.random() ** 3 for _ in range(16)]
        labels = {}
        for layer in found.scores.layers:
            if layer.damages is not None:
                place = rng.choices(range(len(layer.labels)), weights[: len(layer.labels)])[0]
                labels[f"{layer.component}:{layer.layer}"] = layer.labels[place]
        predicted = predict(found.scores, labels, found.corrections)
        rows.append((round(psnr_db(predicted), 2), round(psnr_db(mean(trials.measure(labels))), 2)))
    return {"spearman": float(spearmanr(*zip(*rows, strict=True)).statistic), "predicted_and_measured_db": rows}


if __name__ == "__main__":
    main()
