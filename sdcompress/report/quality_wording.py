"""The words and rows of verdicts, noise floor, component metrics and gates, shared by a report's faces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdcompress.planning.gates import gate_value_text
from sdcompress.report.pairing import all_identical
from sdcompress.report.sample_metrics import METRICS
from sdcompress.report.wording import MISSING

NAMES = {
    "clip_score": "CLIP drift",
    "psnr_db": "PSNR",
    "ssim": "SSIM",
    **{name: called for name, (_, called) in METRICS.items()},
}
SETS = {"cmmd": "CMMD", "fid": "FID"}
LABELS = {**SETS, "energy": "energy"}
SET_DIGITS = {"cmmd": 3, "fid": 2}
DIGITS = {"clip_score": 2, "psnr_db": 1, "ssim": 3, "ms_ssim": 3, "clip_image": 2, "lpips": 3}

QUALITY_NOTE = (
    "Beside each figure: the same between the original and itself, drawn again with another seed, in bfloat16, or in "
    "batches of 2. CLIP drift is judged by its interval and by how far redrawing moves it; similarity by what other "
    "arithmetic leaves of it."
)


def quality_header(report: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of `quality_rows`: the figure, then each measured source of noise, then the verdict."""
    return ("", "compressed", *_sources(report), "verdict")


def quality_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(what, compressed against original, original against itself for each source of noise, verdict)."""
    rows = []
    for name, label in NAMES.items():
        own = _figure(name, report)
        if own == MISSING:
            continue
        others = [_floor_figure(name, entry) for entry in _sources(report).values()]
        verdict = report["verdicts"].get(name)
        rows.append((label, own, *others, MISSING if verdict is None else verdict["verdict"]))
    for name, label in SETS.items():
        figure = report["set_metrics"].get(name)
        if figure is not None:
            floor, digits = figure.get("floor", {}), SET_DIGITS[name]
            reseeded = f"{floor['seed']:.{digits}f}" if floor else MISSING
            others = [reseeded if source == "seed" else MISSING for source in _sources(report)]
            said = MISSING if figure.get("reliable", True) else "unreliable"
            rows.append((label, f"{figure['value']:.{digits}f}", *others, said))
    return rows


def verdict_findings(report: Mapping[str, Any]) -> list[str]:
    """A sentence for each effect out of the noise, one for all within it; then what was not measured."""
    told, quiet = [], []
    for name, verdict in report["verdicts"].items():
        if verdict["verdict"] == "within noise":
            quiet.append(NAMES[name])
            continue
        told.append(f"{NAMES[name]}: {verdict['verdict']}: {verdict['reason']}.")
    if quiet:
        told.append(f"Within noise: {', '.join(quiet)}.")
    floor = report["noise_floor"]
    for name, label in SETS.items():
        figure = report["set_metrics"].get(name, {})
        if not figure.get("reliable", True):
            told.append(
                f"{label} is unreliable: over {figure['pictures']} pictures, and it needs {figure['enough_pictures']}; "
                f"compare it with another seed's alone, over equally many."
            )
    reasons = {} if floor is None else {f"noise in {name}": why for name, why in floor["not_measured"].items()}
    reasons |= {NAMES.get(name, LABELS.get(name, name)): why for name, why in report["not_measured"].items()}
    if floor is None:
        reasons["noise floor"] = "not asked for, so similarity has no verdict"
    told += [f"Not measured: {name} ({why})." for name, why in reasons.items()]
    return told


def component_metric_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(component, what it alone computes differently)."""
    rows = []
    for name, figures in (report["component_metrics"] or {}).items():
        if "cosine" in figures:
            cosine = figures["cosine"]
            rows.append((name, f"cosine of embeddings {_near_one(cosine['mean'])} (lowest {_near_one(cosine['min'])})"))
        elif "noise_sqnr_db" in figures:
            rows.append((name, _noise_text(figures["noise_sqnr_db"])))
        elif "decode_psnr_db" in figures:
            psnr = figures["decode_psnr_db"]
            told = "identical" if psnr["mean"] is None else f"{psnr['mean']:.1f} dB (lowest {psnr['min']:.1f})"
            rows.append((name, f"PSNR of decoded pictures {told}"))
        elif "agreement" in figures:
            flagged = [figures[f"flagged_{side}"] for side in ("original", "compressed")]
            told = f"agrees on {100 * figures['agreement']:.0f} % of {figures['pictures']} pictures"
            rows.append((name, f"{told} ({flagged[0]} and {flagged[1]} flagged)"))
    return rows


def gate_lines(report: Mapping[str, Any]) -> list[str]:
    """`passed` or `FAILED`, the gate, and what was measured."""
    return [
        f"{'passed' if each['passed'] else 'FAILED'}  {each['gate']}  ({gate_value_text(each)})"
        for each in report["gates"]
    ]


def _near_one(cosine: float) -> str:
    return f"{cosine:.4f}" if cosine < 0.999 else f"1 - {max(0.0, 1 - cosine):.1e}"


def _sources(report: Mapping[str, Any]) -> Mapping[str, Any]:
    return (report["noise_floor"] or {}).get("sources", {})


def _figure(name: str, report: Mapping[str, Any]) -> str:
    if name == "clip_score":
        change = report["change"]["clip_score"]
        return _text(name, change["difference"], change["interval_95"])
    similarity = report["similarity"]
    if name == "psnr_db" and similarity["pairs"] and similarity["identical"] == similarity["pairs"]:
        return "infinite"
    entry = similarity[name] if name in ("psnr_db", "ssim") else report["metrics"].get(name, {})
    return _text(name, entry.get("mean"), entry.get("interval_95"))


def _floor_figure(name: str, source: Mapping[str, Any]) -> str:
    if name == "psnr_db" and all_identical(source):
        return "infinite"
    entry = source.get(name, {})
    return _text(name, entry.get("difference" if name == "clip_score" else "mean"), None)


def _text(name: str, value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return MISSING
    digits, sign = DIGITS[name], "+" if name == "clip_score" else ""
    figures = [f"{each:{sign}.{digits}f}" for each in (value, *(interval or ()))]
    return f"{figures[0]} [{figures[1]}, {figures[2]}]" if interval else figures[0]


def _noise_text(sqnr: Mapping[str, Any]) -> str:
    if sqnr["mean"] is None:
        return "predicted noise identical at every timestep"
    known = [(step, value) for step, value in zip(sqnr["timesteps"], sqnr["values"], strict=True) if value is not None]
    first, last = known[0], known[-1]
    return (
        f"SQNR of predicted noise {sqnr['mean']:.1f} dB "
        f"({first[1]:.1f} at timestep {first[0]:g}, {last[1]:.1f} at {last[0]:g})"
    )
