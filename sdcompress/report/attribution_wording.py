"""The words and rows of the attribution and its ladder of steps, shared by a report's faces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sdcompress.report.pairing import all_identical
from sdcompress.report.wording import MISSING, bytes_text, ratio_text

ATTRIBUTION_HEADER = ("swapped", "saves", "PSNR, dB", "CLIP drift", "time", "verdict")
LADDER_HEADER = ("after step", "saves", "PSNR", "gain", "CLIP drift", "gain", "verdict")
LADDER_NOTE = (
    "Each component after the first, the second, ... step of its recipe, in the original: what the step saves, how far "
    "the pictures are from the original's so far (PSNR in dB), and what the step alone changed (gain below 0: lost)."
)


def attribution_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(component, bytes saved, PSNR, CLIP drift, time, verdict) of the original with that component swapped."""
    return [
        (
            entry["name"],
            bytes_text(entry["saved_bytes"]),
            psnr_text(entry),
            _figure(entry["clip_score"]["difference"], "+", 2),
            ratio_text(entry["latency_s"]["ratio"]),
            entry.get("verdict") or MISSING,
        )
        for entry in report["attribution"] or ()
    ]


def ladder_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row with a component's name alone, then one for each of its steps.

    (step, bytes it saves, PSNR and CLIP drift so far, each followed by what the step changed, verdict)
    """
    rows: list[tuple[str, ...]] = []
    for entry in report.get("attribution") or ():
        if entry.get("ladder"):
            rows.append((entry["name"], *("" for _ in LADDER_HEADER[1:])))
        for rung in entry.get("ladder") or ():
            saved = bytes_text(rung["saved_bytes"])
            if rung["not_measured"] is not None:
                rows.append((step_text(rung), saved, *(MISSING for _ in range(4)), "not measured"))
                continue
            rows.append(
                (
                    step_text(rung),
                    saved,
                    psnr_text(rung),
                    _figure(rung["adds"]["psnr_db"]["difference"], "+", 1),
                    _figure(rung["clip_score"]["difference"], "+", 2),
                    _figure(rung["adds"]["clip_score"]["difference"], "+", 2),
                    rung["verdict"] or MISSING,
                )
            )
    return rows


def ladder_notes(report: Mapping[str, Any]) -> list[str]:
    """Why rungs, or the whole ladder, were not measured, and what else is to be said of them."""
    reasons: dict[str, None] = {}
    for entry in report.get("attribution") or ():
        if entry.get("ladder_not_measured"):
            reasons[f"Steps were not measured one by one: {entry['ladder_not_measured']}."] = None
        for rung in entry.get("ladder") or ():
            reasons |= {f"{entry['name']} after {rung['step']}: {told}.": None for told in _told(rung)}
    return list(reasons)


def step_text(rung: Mapping[str, Any]) -> str:
    """The step as a rung of the ladder calls it."""
    return f"+ {rung['step']}"


def psnr_text(entry: Mapping[str, Any]) -> str:
    """Decibels between the original's pictures and a swapped pipeline's, or `identical`."""
    return "identical" if all_identical(entry) else _figure(entry["psnr_db"]["mean"], "", 1)


def _told(rung: Mapping[str, Any]) -> Iterator[str]:
    if rung["not_measured"] is not None:
        yield f"not measured: {rung['not_measured']}"
        return
    if rung["note"]:
        yield rung["note"]
    if rung["with"]:
        yield f"its gain is that of {' and '.join((*rung['with'], rung['step']))} together"


def _figure(value: float | None, sign: str, digits: int) -> str:
    return MISSING if value is None else f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: no -0.00
