"""The headline figures of a report: what each is now, what it was, and whether that is better or worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdcompress.report.model import ReportData
from sdcompress.report.number_text import MISSING, bytes_text, number_text
from sdcompress.report.table import UNMEASURED, Cell, as_cell
from sdcompress.report.tables import pipeline_table, quality_table

COSTS = ("size on disk", "parameters", "peak memory", "time per picture")
QUALITIES = ("CLIP drift", "PSNR")
TONES = {"better": "good", "worse": "bad"}  # all else is calm


@dataclass(frozen=True)
class Tile:
    """One headline figure: `chip` is a ratio or a verdict, coloured by `tone` (good, bad or calm)."""

    label: str
    value: str
    notes: tuple[str, ...] = ()
    chip: str = ""
    tone: str = "calm"


def make_tiles(report: ReportData) -> list[Tile]:
    """Return size, parameters, memory, latency, CLIP drift and PSNR, measured or not."""
    quality = quality_table(report)
    costs, qualities = ({str(row[0]): row[1:] for row in each.rows} for each in (pipeline_table(report), quality))
    return [
        *(_cost(label, costs.get(label), _more(report, label)) for label in COSTS),
        *(_quality(label, qualities.get(label), quality.columns[2:-1]) for label in QUALITIES),
    ]


def _more(report: ReportData, label: str) -> str:
    bits, after_imports = report.compressed.bits_per_weight, report.compressed.peak_memory_over_imports_bytes
    if label == "size on disk" and bits is not None:
        return f"{number_text(bits)} bits per weight"
    if label == "peak memory" and after_imports is not None:
        return f"{bytes_text(after_imports)} after imports"
    return ""


def _cost(label: str, cells: Sequence[Cell | str] | None, more: str) -> Tile:
    name = label.capitalize()
    if cells is None or as_cell(cells[1]).text == MISSING:
        return Tile(name, UNMEASURED)
    original, compressed, change, verdict = map(as_cell, cells)
    interval = f"95 % interval of the ratio {change.interval}" if change.interval else ""
    notes = (f"original {original.full}", interval, more)
    return Tile(name, compressed.text, _given(notes), change.text, TONES.get(verdict.text, "calm"))


def _quality(label: str, cells: Sequence[Cell | str] | None, sources: Sequence[str]) -> Tile:
    name = "Same-seed PSNR, dB" if label == "PSNR" else label
    if cells is None:
        return Tile(name, UNMEASURED)
    own, *floor, verdict = map(as_cell, cells)
    noise = [f"noise: {source} {cell.full}" for source, cell in zip(sources, floor, strict=True)]
    notes = (f"95 % interval {own.interval}" if own.interval else "", *(noise or [f"noise floor: {UNMEASURED}"]))
    return Tile(name, own.text, _given(notes), verdict.text, TONES.get(verdict.text, "calm"))


def _given(notes: Sequence[str]) -> tuple[str, ...]:
    return tuple(note for note in notes if note)
