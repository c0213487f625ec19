"""Figures and tables from a race's raw samples. Pure functions of the result file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np


def output_error(reference: np.ndarray, output: np.ndarray) -> dict[str, float | None]:
    """Relative L2 error of an output, its root mean square error, and its signal to noise ratio in dB.

    The ratio is None for an identical output, all three are for one that is not finite; `not_finite` is that share.
    """
    if reference.shape != output.shape:
        raise ValueError(f"outputs of {output.size} values, the reference has {reference.size}")
    if not np.isfinite(output).all():
        share = float(1 - np.isfinite(output).mean())
        return {"relative_l2": None, "rmse": None, "sqnr_db": None, "not_finite": share}
    exact = reference.astype(np.float64)
    distance = float(np.linalg.norm(output - exact))
    relative = distance / float(np.linalg.norm(exact))
    return {
        "relative_l2": relative,
        "rmse": distance / math.sqrt(exact.size),
        "sqnr_db": None if relative == 0 else -20 * math.log10(relative),
        "not_finite": 0.0,
    }


def paired_ratios(samples: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds over the baseline's seconds in the same round of the same group, one for each turn."""
    at = {(sample["group"], sample["round"]): sample["seconds"] for sample in baseline}
    return [sample["seconds"] / at[sample["group"], sample["round"]] for sample in samples]


def summarise(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row of figures for each contender of a result, in its order.

    `of_baseline` is the median of the paired ratios. `of_reference` is that over the reference's own: both are
    ratios to the baseline within a group, so that groups run at other times stay comparable. One that failed, even
    after some turns, has no seconds.
    """
    contenders = result["contenders"]
    baseline = contenders[result["baseline"]].get("samples", [])
    rows = []
    for name, one in contenders.items():
        row = {"name": name, **{key: one[key] for key in ("label", "family", "failed")}}
        row |= {"size_bytes": one.get("size_bytes"), "peak_bytes": one.get("peak_bytes"), "load_s": one.get("load_s")}
        row |= {"error": one.get("error"), **making(result, name)}
        seconds = [sample["seconds"] for sample in one.get("samples", [])]
        if seconds and row["failed"] is None:
            ratios = paired_ratios(one["samples"], baseline)
            row |= {"median_s": median(seconds), "low_s": min(seconds), "high_s": max(seconds)}
            row |= {"of_baseline": median(ratios), "of_baseline_range": [min(ratios), max(ratios)]}
        rows.append(row)
    reference = next((row.get("of_baseline") for row in rows if row["name"] == result["reference"]), None)
    for row in rows:
        if reference and "of_baseline" in row:
            row["of_reference"] = row["of_baseline"] / reference
    return rows


def making(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Seconds to make a contender and all it is made from, and the largest peak of these, in bytes."""
    names = [*result["contenders"][name].get("needs", []), name]
    made = [result["made"][one] for one in names if one in result["made"]]
    peaks = [one["peak_bytes"] for one in made if one["peak_bytes"]]
    return {"make_s": sum(one["seconds"] for one in made), "make_peak_bytes": max(peaks, default=None)}


def race_table(result: Mapping[str, Any]) -> str:
    """The race as a Markdown table: seconds, ratios, bytes, memory, making, and how far the output is from torch's."""
    unit = result.get("unit", "step")
    rows = [
        f"| contender | s per {unit} (range) | of optimum's | of torch float32's | MB | peak MB | load s | made in s "
        "| at peak MB | relative error |",
        "|---|" + "---:|" * 9,
    ]
    return "\n".join([*rows, *(table_row(row) for row in summarise(result))])


def component_table(result: Mapping[str, Any]) -> str:
    """Seconds a picture spends in each component (medians), and the picture's PSNR to the reference's, as Markdown."""
    ran = {name: one for name, one in result["contenders"].items() if one.get("samples")}
    parts = list(dict.fromkeys(part for one in ran.values() for part in one["samples"][0]["component_s"]))
    rows = [f"| contender | {' | '.join(f'{part}, s' for part in parts)} | rest, s | PSNR |"]
    rows.append("|---|" + "---:|" * (len(parts) + 2))
    for one in ran.values():
        spent = [median(sample["component_s"].get(part, 0.0) for sample in one["samples"]) for part in parts]
        rest = median(sample["seconds"] - sum(sample["component_s"].values()) for sample in one["samples"])
        figures = " | ".join(digits(seconds) for seconds in (*spent, rest))
        rows.append(f"| {one['label']} | {figures} | {picture_psnr(one['error'])} |")
    return "\n".join(rows)


def picture_psnr(error: Mapping[str, float | None]) -> str:
    """The PSNR of a picture in 0..1 that is this far from the reference's."""
    rmse = error["rmse"]
    if rmse is None:
        return "not finite"
    return f"{-20 * math.log10(rmse):.1f} dB" if rmse else "identical"


def table_row(row: Mapping[str, Any]) -> str:
    """One contender's line; a failed one tells why instead of its figures."""
    made = f"{row['make_s']:.0f}" if row["make_peak_bytes"] else "-"
    peak = megabytes(row["make_peak_bytes"])
    if "median_s" not in row:
        reason = (row["failed"] or "did not run").splitlines()[0].replace("|", "/")
        return f"| {row['label']} | failed: {reason} | | | | | | {made} | {peak} | |"
    return (
        f"| {row['label']} | {digits(row['median_s'])} ({digits(row['low_s'])}-{digits(row['high_s'])}) "
        f"| {row['of_baseline']:.2f}x | {ratio(row.get('of_reference'))} | {megabytes(row['size_bytes'])} "
        f"| {megabytes(row['peak_bytes'])} | {row['load_s']:.1f} | {made} | {peak} | {describe_error(row['error'])} |"
    )


def describe_error(error: Mapping[str, float | None]) -> str:
    """The relative error with two digits, or that the output is not finite."""
    return "not finite" if error["relative_l2"] is None else f"{error['relative_l2']:.2g}"


def digits(seconds: float) -> str:
    """Seconds with three digits or so."""
    return f"{seconds:.2f}" if seconds >= 1 else f"{seconds:.3f}"


def ratio(value: float | None) -> str:
    """A ratio as 0.49x; a dash for None."""
    return "-" if value is None else f"{value:.2f}x"


def megabytes(size: int | None) -> str:
    """Bytes as megabytes; a dash for None."""
    if size is None:
        return "-"
    return f"{size / 1e6:,.0f}" if size >= 1e8 else f"{size / 1e6:.1f}"
