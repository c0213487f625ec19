"""The headline tiles of the HTML report: a figure, where it came from, and what it may be called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdcompress.report.pairing import all_identical
from sdcompress.report.wording import (
    SAME_MEMORY,
    bytes_text,
    count_text,
    interval_text,
    ratio_text,
    seconds_text,
    signed_text,
)

UNMEASURED = "not measured"
NO_FLOOR = "noise floor: not measured"
# What is gained is green, what is lost red; a verdict decides where the evaluation gave one.
TONES = {"better": "good", "worse": "bad", "within noise": "calm"}


@dataclass(frozen=True)
class Tile:
    """One headline: `chip` is a word or ratio coloured by `tone` (good, bad or calm)."""

    label: str
    value: str
    notes: tuple[str, ...]
    chip: str = ""
    tone: str = "calm"


def make_tiles(report: Mapping[str, Any]) -> list[Tile]:
    """Size, parameters, memory, latency, CLIP drift and PSNR, in this order, measured or not."""
    return [
        _cost(report, "size_bytes", "Size on disk", bytes_text, 0.005),
        _cost(report, "parameters", "Parameters", count_text, 0.005),
        _cost(report, "peak_memory_bytes", "Peak memory", bytes_text, SAME_MEMORY),
        _latency(report),
        _drift(report),
        _psnr(report),
    ]


def floor_texts(report: Mapping[str, Any], metric: str) -> list[str]:
    """The noise floor of `clip_score`, `psnr_db` or `ssim`, one text a source: `another seed +0.03 [-0.2, +0.3]`."""
    told = []
    for name, source in ((report.get("noise_floor") or {}).get("sources") or {}).items():
        text = floor_text(source, metric)
        if text != UNMEASURED:
            told.append(f"{source.get('label', name)} {text}")
    return told


def floor_text(source: Mapping[str, Any], metric: str) -> str:
    """A figure of a source of the noise floor with its interval; a difference has its sign."""
    figure = source.get(metric)
    if not figure:
        return UNMEASURED
    interval = figure.get("interval_95")
    if figure.get("difference") is not None:
        return signed_text(figure["difference"], interval)
    if figure.get("mean") is None:
        return "identical" if metric == "psnr_db" and all_identical(source) else UNMEASURED
    return f"{figure['mean']:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def _cost(report: Mapping[str, Any], name: str, label: str, text: Any, tolerance: float) -> Tile:
    original, compressed = report["original"][name], report["compressed"][name]
    if compressed is None:
        return Tile(label, UNMEASURED, ())
    ratio = report["change"][name]["ratio"]
    tone = _tone(ratio, (ratio - tolerance, ratio + tolerance)) if ratio else "calm"
    notes = [f"original {UNMEASURED if original is None else text(original)}"]
    if name == "size_bytes" and report["compressed"]["bits_per_weight"] is not None:
        notes.append(f"{report['compressed']['bits_per_weight']:.2f} bits per weight")
    if name == "peak_memory_bytes":
        over = report["compressed"].get("peak_memory_over_imports_bytes")
        notes.append(f"above the imports {UNMEASURED if over is None else bytes_text(over)}")
    return Tile(label, text(compressed), tuple(notes), "" if ratio is None else ratio_text(ratio), tone)


def _latency(report: Mapping[str, Any]) -> Tile:
    change = report["change"]["latency_s"]
    if report["compressed"]["latency_s"] is None:
        return Tile("Time per picture", UNMEASURED, ())
    interval = change.get("ratio_interval_95")
    notes = [f"original {seconds_text(report['original']['latency_s'])}"]
    notes.append(f"ratio in [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "interval: too few pictures")
    tone = _tone(change["ratio"], interval) if interval else "calm"
    value, chip = seconds_text(report["compressed"]["latency_s"]), ratio_text(change["ratio"])
    return Tile("Time per picture", value, tuple(notes), chip, tone)


def _drift(report: Mapping[str, Any]) -> Tile:
    change = report["change"]["clip_score"]
    if change["difference"] is None:
        return Tile("CLIP score drift", UNMEASURED, ("no scorer was used" if report["scorer"] is None else "no pair",))
    interval = change["interval_95"]
    notes = [f"95 % {interval_text(interval)}" if interval else "interval: too few prompts"]
    chip, tone = _verdict(report, "clip_score")
    if not chip and interval:
        inside = interval[0] <= 0 <= interval[1]
        chip = "no drift shown" if inside else "lower" if interval[1] < 0 else "higher"
        tone = "calm" if inside else "bad" if interval[1] < 0 else "good"
    notes += _floor_notes(report, "clip_score")
    return Tile("CLIP score drift", signed_text(change["difference"]), tuple(notes), chip, tone)


def _psnr(report: Mapping[str, Any]) -> Tile:
    similarity = report["similarity"]
    label = "Same-seed PSNR"
    if not similarity["pairs"]:
        return Tile(label, UNMEASURED, ("no pair of pictures to compare",))
    chip, tone = _verdict(report, "psnr_db")
    if similarity["identical"] == similarity["pairs"]:
        return Tile(label, "identical", (f"all {similarity['pairs']} pairs, to the pixel",), chip or "same", tone)
    psnr = similarity["psnr_db"]
    notes = [f"lowest {psnr['min']:.1f} dB, SSIM {similarity['ssim']['mean']:.3f}"]
    notes += _floor_notes(report, "psnr_db")
    return Tile(label, f"{psnr['mean']:.1f} dB", tuple(notes), chip, tone)


def _floor_notes(report: Mapping[str, Any], metric: str) -> list[str]:
    floors = floor_texts(report, metric)
    return [f"noise: {floors[0]}"] if floors else [NO_FLOOR]


def _verdict(report: Mapping[str, Any], metric: str) -> tuple[str, str]:
    verdict = ((report.get("verdicts") or {}).get(metric) or {}).get("verdict", "")
    return verdict, TONES.get(verdict, "calm")


def _tone(ratio: float, interval: Sequence[float]) -> str:
    """Whether less, which is better for every cost, is certain: good, bad, or calm where it is neither."""
    if ratio == 1:
        return "calm"
    return "good" if interval[1] < 1 else "bad" if interval[0] > 1 else "calm"
