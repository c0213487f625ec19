"""The attribution and its ladder of steps as tables of the HTML report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdcompress.report.attribution_wording import step_text
from sdcompress.report.page_tiles import UNMEASURED
from sdcompress.report.pairing import all_identical
from sdcompress.report.quality_wording import NAMES
from sdcompress.report.wording import bytes_text, ratio_text, signed_text

ATTRIBUTION_COLUMNS = ("part", "saves", "PSNR", "CLIP drift", "time", "verdict")
LADDER_COLUMNS = (
    "after step",
    "the step saves",
    "weights so far",
    "PSNR",
    "the step's change, dB",
    "CLIP drift",
    "the step's change",
    "time",
    "verdict",
)
FIRST = "from identical"  # a change in dB has no figure where the pictures were the original's before


def attribution_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(what was swapped in, bytes saved, PSNR, CLIP drift, time, verdict) of each component."""
    return [
        (str(entry.get("name", UNMEASURED)), _bytes(entry.get("saved_bytes")), *_quality(entry), _verdict(entry))
        for entry in report.get("attribution") or ()
    ]


def ladder_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The columns of LADDER_COLUMNS for each step of each component."""
    rows: list[tuple[str, ...]] = []
    for entry in report.get("attribution") or ():
        for rung in entry.get("ladder") or ():
            psnr, clip, time = _quality(rung)
            adds = rung.get("adds") or {}
            rows.append(
                (
                    f"{entry.get('name', UNMEASURED)} {step_text(rung)}",
                    _bytes(rung.get("saved_bytes")),
                    _bytes(rung.get("weights_bytes")),
                    psnr,
                    _change(adds.get("psnr_db"), FIRST if adds else UNMEASURED),
                    clip,
                    _change(adds.get("clip_score")),
                    time,
                    _verdict(rung),
                )
            )
    return rows


def _quality(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    ratio = (entry.get("latency_s") or {}).get("ratio")
    return _psnr(entry), _change(entry.get("clip_score")), UNMEASURED if ratio is None else ratio_text(ratio)


def _psnr(entry: Mapping[str, Any]) -> str:
    mean = (entry.get("psnr_db") or {}).get("mean")
    if mean is None:
        return "identical" if all_identical(entry) else UNMEASURED
    return f"{mean:.1f} dB"


def _change(figure: Mapping[str, Any] | None, without: str = UNMEASURED) -> str:
    difference = (figure or {}).get("difference")
    return without if difference is None else signed_text(difference, (figure or {}).get("interval_95"))


def _bytes(size_bytes: float | None) -> str:
    return UNMEASURED if size_bytes is None else bytes_text(size_bytes)


def _verdict(entry: Mapping[str, Any]) -> str:
    """The verdict with the metrics that gave it."""
    verdict = entry.get("verdict")
    if verdict is None:
        return UNMEASURED if entry.get("not_measured") else "not judged"
    of = [NAMES[name] for name, each in entry["verdicts"].items() if each["verdict"] == verdict != "within noise"]
    return f"{verdict} ({', '.join(of)})" if of else str(verdict)
