"""Write the generated tables of README.md and docs/, from benchmarks/results/*.json and the steps' own descriptions.

    python benchmarks/docs_tables.py

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; tests/test_docs.py fails when one differs from its file.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.contenders.summary import describe_error, digits, megabytes, summarise  # noqa: E402
from benchmarks.gpu.tables import run_tables, status_text  # noqa: E402
from benchmarks.pruning_faces import pruning_table  # noqa: E402
from benchmarks.quality.table import quality_per_byte_table  # noqa: E402
from sdcompress.planning.registry import describe_steps  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"


# What README.md shows of the recipes, from the largest artifact to the smallest.
README_RECIPES = ("onnx-fp32", "nf4", "onnx-int8", "int8", "onnx-int4", "int4-gptq", "int3-gptq")


def main() -> None:
    for page in PAGES:
        page.write_text(with_tables(page), encoding="utf-8")
        print(f"written: {page}")


def with_tables(page: Path) -> str:
    """Return the page's text with every generated table as the result files say."""
    text = page.read_text(encoding="utf-8")
    for name, make in PAGES[page].items():
        file = RESULTS / f"{name.replace('-', '_')}.json"
        result = {} if make in FROM_ELSEWHERE else json.loads(file.read_text(encoding="utf-8"))
        block = f"<!-- {name} -->\n{make(result)}\n<!-- /{name} -->"
        text, count = re.subn(f"<!-- {name} -->.*<!-- /{name} -->", lambda _, block=block: block, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{page}: {count} places for the table {name}; there must be one")
    return text


def parameters_table(_: dict[str, Any]) -> str:
    """Return every parameter of every step, as the steps describe them."""
    rows = ["| step | parameter | values | default | meaning |", "|---|---|---|---|---|"]
    for step in describe_steps():
        for each in step.parameters:
            default = "required" if each.default is None else f"`{each.default}`"
            cells = (f"`{step.kind}`", f"`{each.name}`", each.values, default, each.description)
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def search_table(result: dict[str, Any]) -> str:
    """Return shipped recipes beside searched ones of the same bytes, and how well predictions held."""
    rows = _head("recipe", "MB", "PSNR", "MB, searched", "PSNR, searched", "gain [95 %], dB")
    for name, row in result["rows"].items():
        low, high = row["gain_interval_95"]
        rows.append(
            f"| `{name}` | {row['shipped_bytes'] / 1e6:.2f} | {row['shipped_psnr_db']:.1f} dB "
            f"| {row['searched_bytes'] / 1e6:.2f} | {row['searched_psnr_db']:.1f} dB "
            f"| {row['gain_db']:+.1f} [{low:+.1f}, {high:+.1f}] |"
        )
    predictions = result["predictions"]
    pairs = predictions["predicted_and_measured_db"]
    worst = max((measured - predicted for predicted, measured in pairs), key=abs)
    said = (
        f"Predicted and measured PSNR of {len(pairs)} random allocations: Spearman's rank correlation "
        f"{predictions['spearman']:.3f}, largest deviation {worst:+.1f} dB. {result['environment']['cpu']}."
    )
    return "\n".join([*rows, "", said])


def readme_table(result: dict[str, Any]) -> str:
    """Return the rows of README_RECIPES alone."""
    return recipes_table({**result, "reports": {name: result["reports"][name] for name in README_RECIPES}})


def recipes_table(result: dict[str, Any]) -> str:
    rows = _head("recipe", "bytes", "bits per weight", "CLIP drift [95 %]", "PSNR", "time per picture")
    for name, report in result["reports"].items():
        change, similarity = report["change"], report["similarity"]
        low, high = change["clip_score"]["interval_95"]
        identical = similarity["psnr_db"]["mean"] is None
        psnr = "identical" if identical else f"{similarity['psnr_db']['mean']:.1f} dB"
        bits = 8 * report["compressed"]["weights_bytes"] / report["compressed"]["parameters"]
        drift = f"{change['clip_score']['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
        rows.append(
            f"| `{name}` | {change['size_bytes']['ratio']:.2f}x | {bits:.2f} | {drift} | {psnr} "
            f"| {change['latency_s']['ratio']:.2f}x |"
        )
    first = next(iter(result["reports"].values()))
    original = first["original"]
    settings, machine = first["settings"], first["environment"]
    rows += [
        "",
        f"Original: {original['parameters']:,} parameters, {original['size_bytes'] / 1e6:.1f} MB, CLIP score "
        f"{original['clip_score']:.1f} by {first['scorer']['name']}; {settings['prompt_count']} prompts, "
        f"{settings['num_inference_steps']} steps; {_threads(machine)}, float32.",
    ]
    return "\n".join(rows)


def _threads(machine: dict[str, Any]) -> str:
    count = machine["threads"]["original"]
    return f"{count} thread{'s' * (count != 1)} of {machine['cpu']}"


def full_size_table(result: dict[str, Any]) -> str:
    original = result["original_size_bytes"]
    draws = all("one_step" in recipe for recipe in result["recipes"].values())
    titles = ["recipe", "MB", "of the original", "UNet bits per weight", "peak MB", "seconds"]
    rows = _head(*titles, *(["drawing: peak MB", "opened in s", "one step in s"] if draws else []))
    for name, recipe in result["recipes"].items():
        row = (
            f"| `{name}` | {recipe['size_bytes'] / 1e6:,.0f} | {recipe['size_bytes'] / original:.3f}x "
            f"| {recipe['unet_bits_per_weight']:.2f} | {max(recipe['peak_bytes']) / 1e6:,.0f} "
            f"| {median(recipe['seconds']):.1f} |"
        )
        step = recipe.get("one_step")
        if draws:
            row += f" {step['peak_bytes'] / 1e6:,.0f} | {step['open_s']:.1f} | {step['draw_s']:.1f} |"
        rows.append(row)
    machine = result["environment"]
    rows += [
        "",
        f"Original: {original / 1e6:,.0f} MB in float16, copied in {median(result['copy_s']):.1f} s; "
        f"{machine['cores']} cores of {machine['cpu']}.",
    ]
    return "\n".join(rows)


def unet_step_table(result: dict[str, Any]) -> str:
    rows = _head("contender", "seconds (range)", "of optimum's", "MB", "peak MB", "made in s", "relative error")
    for row in summarise(result):
        if "median_s" not in row:
            rows.append(f"| {row['label']} | {_failure(row['failed'])} | | | | | |")
            continue
        spread = f"{digits(row['median_s'])} ({digits(row['low_s'])}-{digits(row['high_s'])})"
        made = f"{row['make_s']:.0f}" if row["make_peak_bytes"] else "-"
        rows.append(
            f"| {row['label']} | {spread} | {row['of_baseline']:.2f}x | {megabytes(row['size_bytes'])} "
            f"| {megabytes(row['peak_bytes'])} | {made} | {describe_error(row['error'])} |"
        )
    shape = "x".join(map(str, next(iter(result["inputs"]["shapes"][result["component"]].values()))))
    openvino = result["openvino_environment"]
    versions = {**result["environment"]["versions"], **{name: openvino[name] for name in openvino if name != "numpy"}}
    named = ", ".join(
        f"{name} {versions[name]}"
        for name in ("torch", "onnxruntime", "optimum-onnx", "openvino", "nncf")
        if name in versions
    )
    rows += [
        "",
        f"{result['model']}, {result['component']}, input {shape}, {result['weights']} weights; medians of "
        f"{result['rounds']} rounds; error against torch in float32; {named}; {_machine(result)}.",
    ]
    return "\n".join(rows)


def pipeline_table(result: dict[str, Any]) -> str:
    parts = ("text_encoder", "unet", "vae")
    rows = _head(
        "contender", "seconds a picture (range)", "of optimum's", *(f"{part}, s" for part in parts), "MB", "peak MB"
    )
    for row in summarise(result):
        if "median_s" not in row:
            rows.append(f"| {row['label']} | {_failure(row['failed'])} | | | | | | |")
            continue
        spread = f"{digits(row['median_s'])} ({digits(row['low_s'])}-{digits(row['high_s'])})"
        samples = result["contenders"][row["name"]]["samples"]
        spent = " | ".join(digits(median(sample["component_s"][part] for sample in samples)) for part in parts)
        rows.append(
            f"| {row['label']} | {spread} | {row['of_baseline']:.2f}x | {spent} "
            f"| {megabytes(row['size_bytes'])} | {megabytes(row['peak_bytes'])} |"
        )
    options = result["drawing"]["options"]
    rows += [
        "",
        f"{result['model']}, {options['width']}x{options['height']}, {options['num_inference_steps']} steps with "
        f"guidance, {result['weights']} weights, which have no quality to compare; medians of {result['rounds']} "
        f"rounds; {_machine(result)}.",
    ]
    return "\n".join(rows)


def onnx_quality_table(result: dict[str, Any]) -> str:
    rows = _head("pipeline", "MB", "UNet bits per weight", "PSNR", "SSIM", "CLIP drift [95 %]")
    for report in result["reports"].values():
        compressed, change, similarity = report["compressed"], report["change"], report["similarity"]
        low, high = change["clip_score"]["interval_95"]
        identical = similarity["psnr_db"]["mean"] is None
        psnr = "identical" if identical else f"{similarity['psnr_db']['mean']:.1f} dB"
        rows.append(
            f"| {report['label']} | {compressed['size_bytes'] / 1e6:.1f} "
            f"| {compressed['components']['unet']['bits_per_weight']:.2f} | {psnr} | {similarity['ssim']['mean']:.4f} "
            f"| {change['clip_score']['difference']:+.2f} [{low:+.2f}, {high:+.2f}] |"
        )
    first = next(iter(result["reports"].values()))
    settings = first["settings"]
    rows += [
        "",
        f"tiny-sd, {settings['prompt_count']} prompts, {settings['num_inference_steps']} steps, against the original "
        f"in float32 (CLIP score {first['original']['clip_score']:.1f}); quantize_static calibrated with the same "
        f"prompts, steps and seeds as the recipes.",
    ]
    return "\n".join(rows)


def _failure(reason: str | None) -> str:
    return "failed: " + (reason or "did not run").splitlines()[0].replace("|", "/")


def _machine(result: dict[str, Any]) -> str:
    machine = result["environment"]
    there = [name for name, has in machine["instructions"].items() if has]
    return f"{result['threads']} threads of {machine['cpu']} ({', '.join(there) or 'no vector extensions known'})"


def _head(first: str, *others: str) -> list[str]:
    return [f"| {' | '.join((first, *others))} |", "|---|" + "---:|" * len(others)]


def torch_step_table(result: dict[str, Any]) -> str:
    rows = _head("weights", "MB", "seconds (range)", "of bfloat16's (range)")
    plain = result["contenders"][result["baseline"]]["seconds"]
    for name, one in result["contenders"].items():
        seconds, ratios = one["seconds"], [own / base for own, base in zip(one["seconds"], plain, strict=True)]
        rows.append(
            f"| `{name}` | {megabytes(one['size_bytes'])} | {digits(median(seconds))} ({digits(min(seconds))}-"
            f"{digits(max(seconds))}) | {median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f}) |"
        )
    rows += ["", f"{result['model']}; medians of {result['rounds']} rounds in turns; {_machine(result)}."]
    return "\n".join(rows)


def pruned_step_table(result: dict[str, Any]) -> str:
    from benchmarks.pruned_step import pruned_step_table as table  # which imports torch

    return table(result)


def gpu_status(_: dict[str, Any]) -> str:
    """Return where the figures of a GPU come from, or that there are none."""
    return status_text(RESULTS / "gpu")


def gpu_tables(_: dict[str, Any]) -> str:
    """Return the tables of the run on a GPU."""
    return run_tables(RESULTS / "gpu")


# Functions that are given no result file: the steps describe themselves, and a run on a GPU has several files.
FROM_ELSEWHERE = (parameters_table, gpu_status, gpu_tables)

# Page -> name of a table -> the function that makes it from its result file (with underscores for dashes).
PAGES: dict[Path, dict[str, Callable[[dict[str, Any]], str]]] = {
    ROOT / "README.md": {"recipes": readme_table},
    ROOT / "docs" / "recipes.md": {"parameters": parameters_table},
    ROOT / "docs" / "search.md": {"search-tiny-sd": search_table, "search-second": search_table},
    ROOT / "docs" / "gpu.md": {"gpu-status": gpu_status, "gpu": gpu_tables},
    ROOT / "docs" / "benchmarks.md": {
        "recipes": recipes_table,
        "onnx-quality": onnx_quality_table,
        "unet-step": unet_step_table,
        "unet-step-openvino": unet_step_table,
        "vae-decoder-step": unet_step_table,
        "text-encoder-step": unet_step_table,
        "pipeline": pipeline_table,
        "full-size": full_size_table,
        "full-size-sdxl": full_size_table,
        "quality-per-byte": quality_per_byte_table,
        "torch-step": torch_step_table,
        "pruned-step": pruned_step_table,
        "pruned-step-onnx": unet_step_table,
        "pruning": pruning_table,
    },
}


if __name__ == "__main__":
    main()
