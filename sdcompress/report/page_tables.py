"""The tables of the HTML report as text: what the page's script sorts and filters, and the small fixed ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sdcompress.report.layers import LAYER_COLUMNS, described
from sdcompress.report.page_tiles import UNMEASURED, floor_text
from sdcompress.report.quality_wording import LABELS, NAMES, SETS
from sdcompress.report.statistics import median
from sdcompress.report.wording import seconds_text

Cell = Any  # a text, or [text, number] where the column sorts by a number (null sorts last)

SIDES = ("original", "compressed")


def worst_first(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The samples by CLIP drift, the largest loss first, then by PSNR; those without a figure last."""
    return sorted(samples, key=lambda sample: (_or_last(drift_of(sample)), _or_last(_psnr(sample)), sample["index"]))


def drift_of(sample: Mapping[str, Any]) -> float | None:
    """Compressed minus original CLIP score of one pair; None where a side is blocked or was not scored."""
    original, compressed = (sample[side]["clip_score"] for side in SIDES)
    blocked = any(sample[side]["blocked"] for side in SIDES)
    return None if blocked or original is None or compressed is None else compressed - original


def sample_table(report: Mapping[str, Any]) -> dict[str, Any]:
    """Columns and rows of the per-prompt table, the worst first, each row with its sample's index as key."""
    samples = worst_first(report["samples"])
    extra = sorted(
        {name for sample in samples for name in sample.get("metrics") or {}} - {"clip_score", "psnr_db", "ssim"}
    )
    columns = [
        ("prompt", "text"),
        ("seed", "number"),
        ("CLIP drift", "number"),
        ("CLIP original", "number"),
        ("CLIP compressed", "number"),
        ("PSNR, dB", "number"),
        ("SSIM", "number"),
        *((name.replace("_", " "), "number") for name in extra),
        ("time original", "number"),
        ("time compressed", "number"),
        ("note", "text"),
    ]
    rows = []
    for sample in samples:
        blocked = any(sample[side]["blocked"] for side in SIDES)
        times = [median(sample[side]["latency_s"]) for side in SIDES]
        psnr = _psnr(sample)
        cells: list[Cell] = [
            sample["prompt"],
            [str(sample["seed"]), sample["seed"]],
            _number(drift_of(sample), "{:+.2f}"),
            *(_number(sample[side]["clip_score"], "{:.2f}") for side in SIDES),
            ["blocked", None] if blocked else ["∞", 1e9] if psnr == math.inf else _number(psnr, "{:.1f}"),
            ["blocked", None] if blocked else _number(sample["ssim"], "{:.3f}"),
            *(_number((sample.get("metrics") or {}).get(name), "{:.4g}") for name in extra),
            *([seconds_text(value), value] if value is not None else [UNMEASURED, None] for value in times),
            note_of(sample),
        ]
        rows.append({"key": sample["index"], "cells": cells})
    return {"columns": [{"name": name, "kind": kind} for name, kind in columns], "rows": rows}


def note_of(sample: Mapping[str, Any]) -> str:
    """What is special about a pair's pictures: identical, blocked, flat or not finite."""
    told = ["identical"] if sample["identical"] else []
    for flag, word in (("blocked", "blocked"), ("flat", "one flat colour"), ("not_finite", "not finite")):
        sides = [side for side in SIDES if sample[side][flag]]
        if sides:
            told.append(f"{word}: {' and '.join(sides)}")
    return "; ".join(told)


def layer_table(report: Mapping[str, Any]) -> dict[str, Any]:
    """Columns and rows of every layer the artifact's manifest speaks of, the largest error first."""
    layers = report["compressed"].get("layers") or []
    rows = []
    for layer in sorted(layers, key=_layer_error):
        bits = layer.get("bits_per_weight")
        rows.append(
            {
                "cells": [
                    f"{layer['component']}.{layer['layer']}",
                    layer["kind"],
                    [f"{layer['parameters']:,}", layer["parameters"]],
                    described(layer),
                    _number(bits, "{:.2f}"),
                    _number(layer.get("weight_sqnr_db"), "{:.1f}"),
                    _number(layer.get("output_sqnr_db"), "{:.1f}"),
                ]
            }
        )
    kinds = ("text", "text", "number", "text", "number", "number", "number")
    return {"columns": [{"name": n, "kind": k} for n, k in zip(LAYER_COLUMNS, kinds, strict=True)], "rows": rows}


def floor_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(what was changed, CLIP drift, PSNR, SSIM) of the original against itself."""
    sources = (report.get("noise_floor") or {}).get("sources") or {}
    return [
        (source.get("label", name), *(floor_text(source, metric) for metric in ("clip_score", "psnr_db", "ssim")))
        for name, source in sources.items()
    ]


def _gate_value(gate: Mapping[str, Any]) -> str:
    if gate.get("value") is None:
        return "infinite" if gate.get("infinite") else UNMEASURED
    return _figure(gate["value"])


def gate_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each gate with its value as text and whether it passed."""
    return [
        {
            "gate": str(gate.get("gate", "")),
            "value": _gate_value(gate),
            "passed": bool(gate.get("passed")),
        }
        for gate in report.get("gates") or ()
    ]


def metric_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(metric, mean, median, 95 % interval, which way is better, verdict) of each metric the evaluation took."""
    rows: list[tuple[str, ...]] = []
    for name, figure in (report.get("metrics") or {}).items():
        interval = figure.get("interval_95")
        better = figure.get("higher_is_better")
        rows.append(
            (
                name.replace("_", " "),
                *(UNMEASURED if figure.get(key) is None else _figure(figure[key]) for key in ("mean", "median")),
                f"[{_figure(interval[0])}, {_figure(interval[1])}]" if interval else UNMEASURED,
                "" if better is None else "higher" if better else "lower",
                ((report.get("verdicts") or {}).get(name) or {}).get("verdict", "not judged"),
            )
        )
    for name, figure in (report.get("set_metrics") or {}).items():
        seed = (figure.get("floor") or {}).get("seed")
        told = "" if seed is None else f", another seed {_figure(seed)} over {figure['floor']['pictures']}"
        said = (
            "not judged" if figure.get("reliable", True) else f"unreliable under {figure['enough_pictures']} pictures"
        )
        label = f"{SETS.get(name, name)} of {figure['pictures']} pictures{told}"
        rows.append((label, _figure(figure["value"]), "", "", "lower", said))
    return rows


def not_measured_lines(report: Mapping[str, Any]) -> list[str]:
    """Each figure that the report lacks, and why."""
    reasons = report.get("not_measured") or {}
    return [f"{NAMES.get(name, LABELS.get(name, name))}: {reason}" for name, reason in reasons.items()]


def component_metric_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(component, metric, figure) of what was measured of a component alone."""
    rows = []
    for component, metrics in (report.get("component_metrics") or {}).items():
        for name, figure in (metrics or {}).items():
            value = figure.get("mean") if isinstance(figure, Mapping) else figure
            if isinstance(value, (int, float)) or value is None:
                rows.append((component, name.replace("_", " "), UNMEASURED if value is None else _figure(value)))
    return rows


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float | None, form: str) -> Cell:
    return [UNMEASURED, None] if value is None else [form.format(value), value]


def _psnr(sample: Mapping[str, Any]) -> float | None:
    return math.inf if sample["identical"] else sample["psnr_db"]


def _or_last(value: float | None) -> float:
    return math.inf if value is None else value


def _layer_error(layer: Mapping[str, Any]) -> tuple[float, str]:
    known = (layer.get("output_sqnr_db"), layer.get("weight_sqnr_db"))
    return next((value for value in known if value is not None), math.inf), layer["layer"]
