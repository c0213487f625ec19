"""What docs/gpu.md shows of the result files of a run on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contenders.summary import digits, megabytes
from benchmarks.gpu.part import ORIGINAL, PARTS
from benchmarks.gpu.result_file import read_result

NOT_YET = "**not yet run on a GPU**"
Result = Mapping[str, Any]


def read_run(folder: Path) -> dict[str, Result]:
    """Return part -> content of its result file, of those that are there."""
    found = {name: read_result(folder / f"{name}.json") for name in PARTS}
    return {name: content for name, content in found.items() if content}


def status_text(folder: Path) -> str:
    """Return a sentence on where the figures come from; that there are none, if there are none."""
    run = read_run(folder)
    if not run:
        return f"This is {NOT_YET}: it was written and tested on processors, and there are no figures."
    first = next(iter(run.values()))
    cards = ", ".join(f"{card['name']} (driver {card['driver']})" for card in first["card"]) or "no GPU"
    versions = first["environment"].get("versions", {})
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "diffusers", "transformers") if name in versions)
    cuda = f" with CUDA {first['environment']['cuda']}" if first["environment"].get("cuda") else ""
    where = "" if first["device"] != "cpu" else f"A trial on a processor: {NOT_YET}. "
    return f"{where}Run on {cards}, {named}{cuda}, commit {first['commit'][:12]}, {first['started'][:10]}."


def run_tables(folder: Path) -> str:
    """Return the tables of the run, and what failed in it."""
    run = read_run(folder)
    blocks = [_part_table(name, result) for name, result in run.items()]
    return "\n\n".join(block for block in blocks if block) or "There are no figures yet."


def _part_table(name: str, result: Result) -> str:
    make = _TABLES[name]
    found = result["results"]
    lines = [f"### {_TITLES[name]}", ""]
    lines += make(found) if found else []
    lines += [f"- Failed: {what}: {error.strip().splitlines()[-1]}" for what, error in result["errors"].items()]
    if found.get("left_out"):
        lines.append(f"- No time was left for {', '.join(found['left_out'])}.")
    return "\n".join(lines).rstrip()


def _tests_table(found: Result) -> list[str]:
    counts = found["counts"]
    lines = [f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped."]
    lines += ["", *(f"- Failed: `{test}`" for test in found["failed"])] if found["failed"] else []
    reasons = sorted(set(found["skipped"].values()))
    lines += ["", *(f"- Skipped: {reason.removeprefix('Skipped: ')}" for reason in reasons)] if reasons else []
    return [*lines, ""]


def _steps_table(found: Result) -> list[str]:
    lines = _head(
        "contender", "UNet MB", "step, ms (range)", "of the original's (range)", "peak MB of a step", "error",
        "picture, s", "of the original's", "peak MB of a picture",
    )  # fmt: skip
    for name, one in found["contenders"].items():
        step, picture = one.get("step"), one.get("picture")
        cells = [_label(name), megabytes(one["unet_bytes"]), *_step_cells(step), megabytes(one["peak_bytes"])]
        cells.append(_error(one) if name != ORIGINAL else "-")
        cells += [digits(picture["median_s"]), f"{picture['median_ratio']:.2f}x"] if picture else ["-", "-"]
        lines.append(_row(*cells, megabytes(one.get("picture_peak_bytes"))))
    return [*lines, "", f"{found['model']}; {found.get('picture_steps', '-')} steps a picture.", ""]


def _compiled_table(found: Result) -> list[str]:
    lines = _head(
        "compiled", "step, ms (range)", "of the original's, not compiled (range)", "peak MB", "error", "compiled in s"
    )
    for name, one in found["contenders"].items():
        cells = [*_step_cells(one.get("step")), megabytes(one["peak_bytes"]), _error(one), f"{one['compile_s']:.0f}"]
        lines.append(_row(_label(name), *cells))
    return [*lines, "", f"{found['model']}; compiled: {found['compiled']}.", ""]


def _tiny_sd_table(found: Result) -> list[str]:
    lines = []
    for dtype, drawn in found.get("pictures", {}).items():
        known = [value for value in drawn["psnr_db"] if value is not None]
        same = len(drawn["psnr_db"]) - len(known)
        psnr = f"{median(known):.1f} dB (lowest {min(known):.1f})" if known else "identical"
        lines.append(f"- Pictures in {dtype} against the CPU's in float32: {psnr}; {same} identical.")
    if not found.get("reports"):
        return [*lines, ""]
    lines += ["", *_head("recipe", "bytes", "PSNR", "CLIP drift", "time per picture", "peak MB", "made in s")]
    for name, report in found["reports"].items():
        change, psnr_db = report["change"], report["similarity"]["psnr_db"]["mean"]
        drift = change.get("clip_score", {}).get("difference")
        cells = [f"{change['size_bytes']['ratio']:.2f}x", "identical" if psnr_db is None else f"{psnr_db:.1f} dB"]
        cells += ["-" if drift is None else f"{drift:+.2f}", f"{change['latency_s']['ratio']:.2f}x"]
        peak = megabytes(report["compressed"].get("peak_device_memory_bytes"))
        lines.append(_row(f"`{name}`", *cells, peak, f"{report['compress_s']:.0f}"))
    for name, report in found["reports"].items():
        if trained := report["recovery"]:
            lines += [
                "",
                f"`{name}` was trained for {trained['steps']:,} steps of {trained['samples_per_step']} samples.",
            ]
    return [*lines, ""]


def _training_table(found: Result) -> list[str]:
    lines = _head("model", "precision", "samples in a batch", "samples a second", "peak MB", "trained parameters")
    for run in found["runs"]:
        if "samples_per_s" in run:
            cells = [run["dtype"], str(run["batch_size"]), digits(run["samples_per_s"]), megabytes(run["peak_bytes"])]
            lines.append(_row(run["model"], *cells, f"{run['trained_parameters'] / 1e6:.1f} M"))
    return [*lines, ""]


_TABLES = {
    "tests": _tests_table,
    "sd15": _steps_table,
    "sdxl": _steps_table,
    "sd15-compiled": _compiled_table,
    "tiny-sd": _tiny_sd_table,
    "training": _training_table,
    "sdxl-compiled": _compiled_table,
}
_TITLES = {
    "tests": "Tests",
    "sd15": "Stable Diffusion 1.5",
    "sdxl": "Stable Diffusion XL",
    "sd15-compiled": "Stable Diffusion 1.5 with torch.compile",
    "tiny-sd": "tiny-sd",
    "training": "Training by `recover`",
    "sdxl-compiled": "Stable Diffusion XL with torch.compile",
}


def _step_cells(step: Mapping[str, Any] | None) -> list[str]:
    if step is None:
        return ["-", "-"]
    low, high = (f"{1000 * value:.1f}" for value in step["range_s"])
    least, most = (f"{value:.2f}" for value in step["range_ratio"])
    return [f"{1000 * step['median_s']:.1f} ({low}-{high})", f"{step['median_ratio']:.2f}x ({least}-{most})"]


def _label(name: str) -> str:
    return name if name == ORIGINAL else f"`{name}`"


def _error(one: Mapping[str, Any]) -> str:
    if not one["finite"]:
        return "not finite"
    return "-" if one["relative_error"] is None else f"{one['relative_error']:.3f}"


def _head(*titles: str) -> list[str]:
    return [_row(*titles), "|---|" + "---:|" * (len(titles) - 1)]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
