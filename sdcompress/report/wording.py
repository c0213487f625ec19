"""The words and rows of a report, shared by all of its faces: tables as text, findings as sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Memory and load time are measured once per process; a smaller change than these is not told from chance.
SAME_MEMORY = 0.02
SAME_LOAD = 0.25

FEW_PROMPTS = 6  # below, bootstrap intervals are too narrow: of normal samples they cover 94 % at 6, 89 % at 4

MISSING = "-"


def count_text(value: float | None) -> str:
    """A number of parameters: 859.5 M."""
    return _scaled(value, (("B", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0)))


def bytes_text(size_bytes: float | None) -> str:
    """A size in decimal units: 512 B, 41.3 MB or 1.72 GB."""
    if size_bytes is None:
        return MISSING
    if abs(size_bytes) < 1000:
        return f"{size_bytes:.0f} B"
    size = float(size_bytes)
    for unit in ("kB", "MB"):
        size /= 1000
        if abs(size) < 999.5:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:,.2f} GB"


def seconds_text(value: float | None) -> str:
    """A duration: 12.3 s, 0.84 s or 5.1 ms."""
    if value is None:
        return MISSING
    if value < 0.1:
        return f"{1000 * value:.1f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def ratio_text(ratio: float | None, interval: Sequence[float] | None = None) -> str:
    """A ratio of compressed to original: 0.51x, with its interval if there is one."""
    if ratio is None:
        return MISSING
    text = "same" if ratio == 1 else f"{ratio:.2f}x"
    return f"{ratio:.2f}x [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else text


def signed_text(value: float | None, interval: Sequence[float] | None = None) -> str:
    """A difference: +0.12, with its interval if there is one."""
    if value is None:
        return MISSING
    text = _signed(value)
    return f"{text} {interval_text(interval)}" if interval else text


def interval_text(interval: Sequence[float]) -> str:
    """An interval of differences: [-0.45, +0.20]."""
    return f"[{_signed(interval[0])}, {_signed(interval[1])}]"


def subject_text(report: Mapping[str, Any]) -> str:
    """One line that says what was compared and how."""
    settings, environment = report["settings"], report["environment"]
    pictures = report["original"]["pictures"]
    device = environment["device_name"]["original"] or environment["device"]["original"]
    dtypes = dict.fromkeys(str(environment["dtype"][side]) for side in ("original", "compressed"))
    threads = environment["threads"]["original"]
    parts = (
        f"{pictures} picture{'s' * (pictures != 1)}",
        f"{settings['num_inference_steps']} steps",
        f"guidance {settings['guidance_scale']}",
        *([] if settings.get("strength") is None else [f"strength {settings['strength']}"]),
        f"{device} {' / '.join(dtypes)}",
        f"{threads} thread{'s' * (threads != 1)}",
    )
    return ", ".join(parts)


def pipeline_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(what, original, compressed, change) for the pipeline as a whole."""
    original, compressed, change = report["original"], report["compressed"], report["change"]
    rows = []
    for name, label, text in (
        ("parameters", "parameters", count_text),
        ("size_bytes", "on disk", bytes_text),
        ("weights_bytes", "weights on disk", bytes_text),
        ("bits_per_weight", "bits per weight", _number),
        ("resident_weights_bytes", "weights in memory", bytes_text),
        ("peak_memory_bytes", "peak memory", bytes_text),
        ("peak_memory_over_imports_bytes", "  above the imports", bytes_text),
        ("peak_device_memory_bytes", "peak device memory", bytes_text),
        ("load_s", "time to load", seconds_text),
        ("latency_s", "time per picture", seconds_text),
        ("images_per_minute", "pictures per minute", _number),
        ("energy_j", "energy per picture", _joules),
        ("macs", "multiply-adds", count_text),
        ("clip_score", "CLIP score", _number),
    ):
        if original.get(name) is None and compressed.get(name) is None:
            continue
        if name == "clip_score":
            told = signed_text(change[name]["difference"], change[name]["interval_95"])
        else:
            told = ratio_text(change[name]["ratio"], change[name].get("ratio_interval_95"))
        rows.append((label, text(original[name]), text(compressed[name]), told))
        if name == "latency_s":
            slow = [(side["latency_s_quantiles"] or {}).get("p95") for side in (original, compressed)]
            ratio = None if None in slow or not slow[0] else slow[1] / slow[0]
            rows.append(("  95th percentile", seconds_text(slow[0]), seconds_text(slow[1]), ratio_text(ratio)))
    return rows


def component_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(component, then original and compressed of: parameters, weights, bits per weight, time per picture)."""
    original, compressed = report["original"]["components"], report["compressed"]["components"]
    rows = []
    for name in dict.fromkeys((*original, *compressed)):
        sides = (original.get(name, {}), compressed.get(name, {}))
        cells = [
            text(side.get(key))
            for key, text in (
                ("parameters", count_text),
                ("weights_bytes", bytes_text),
                ("bits_per_weight", _number),
                ("latency_s", seconds_text),
            )
            for side in sides
        ]
        rows.append((name, *cells))
    return rows


def findings(report: Mapping[str, Any]) -> list[str]:
    """What was gained and what was lost, in sentences; what did not improve is said as plainly as what did."""
    told = [*_clip_finding(report), *_similarity_findings(report), *_cost_findings(report), *_flag_findings(report)]
    told += _input_findings(report)
    prompts = len({sample["prompt"] for sample in report["samples"]})
    if prompts < FEW_PROMPTS:
        told.append(f"Note: intervals from so few prompts ({prompts}) are too narrow; use at least {FEW_PROMPTS}.")
    return told


def _clip_finding(report: Mapping[str, Any]) -> list[str]:
    if report["scorer"] is None:
        return ["CLIP score: not measured (no scorer was used)."]
    change, name = report["change"]["clip_score"], report["scorer"]["name"]
    if change["difference"] is None:
        return [f"CLIP score by {name}: no pair of pictures to score."]
    told = f"CLIP score by {name}: drift {signed_text(change['difference'])} over {change['pairs']} pairs"
    interval = change["interval_95"]
    if interval is None:
        return [f"{told}; too few prompts for an interval."]
    bounds = f"95 % interval {interval_text(interval)}"
    if interval[0] <= 0 <= interval[1]:
        return [f"{told}, {bounds}: it contains 0, so these pictures show no drift."]
    word = "lower" if interval[1] < 0 else "higher"
    return [f"{told}, {bounds}: it does not contain 0, the compressed pipeline scores {word}."]


def _similarity_findings(report: Mapping[str, Any]) -> list[str]:
    similarity = report["similarity"]
    pairs, identical, psnr, ssim = (similarity[name] for name in ("pairs", "identical", "psnr_db", "ssim"))
    told = []
    if not pairs:
        told.append("Same-seed similarity: no pair of pictures to compare.")
    elif identical == pairs:
        told.append(f"Same-seed similarity: all {pairs} pairs are identical to the pixel (PSNR infinite, SSIM 1).")
    else:
        same = f"; {identical} of {pairs} pairs identical, left out of the PSNR mean" if identical else ""
        told.append(
            f"Same-seed similarity: PSNR {psnr['mean']:.1f} dB on average (lowest {psnr['min']:.1f}), "
            f"SSIM {ssim['mean']:.3f} (lowest {ssim['min']:.3f}){same}."
        )
    if similarity["identical_latents"] is False:
        told.append("Note: the two pipelines did not start from the same latents, so PSNR and SSIM mean little.")
    elif similarity["identical_latents"] is None:
        told.append("Note: a pipeline did not tell its initial latents, so it is not certain that both began alike.")
    if similarity["pairs_of_unlike_size"]:
        told.append(f"Note: {similarity['pairs_of_unlike_size']} pairs differ in size and have no PSNR or SSIM.")
    return told


def _cost_findings(report: Mapping[str, Any]) -> list[str]:
    change = report["change"]
    groups: dict[str, list[str]] = {"Improved": [], "About the same": [], "Not improved": []}
    for name, label, tolerance in (
        ("size_bytes", "size on disk", 0.005),
        ("resident_weights_bytes", "weights in memory", 0.005),
        ("peak_memory_bytes", "peak memory", SAME_MEMORY),
        ("peak_device_memory_bytes", "peak device memory", SAME_MEMORY),
        ("load_s", "time to load (one load each)", SAME_LOAD),
    ):
        ratio = change[name]["ratio"]
        if ratio is not None:
            groups[_verdict(ratio + tolerance, ratio - tolerance)].append(f"{label} {ratio:.2f}x")
    ratio, interval = change["latency_s"]["ratio"], change["latency_s"]["ratio_interval_95"]
    if interval is not None:
        groups[_verdict(interval[1], interval[0])].append(f"time per picture {ratio_text(ratio, interval)}")
    return [f"{verdict}: {', '.join(found)}." for verdict, found in groups.items() if found]


def _verdict(at_most: float, at_least: float) -> str:
    return "Improved" if at_most < 1 else "Not improved" if at_least > 1 else "About the same"


def _flag_findings(report: Mapping[str, Any]) -> list[str]:
    told = []
    for flag, what in (
        ("blocked", "blocked by the safety checker (left out of CLIP, PSNR and SSIM)"),
        ("not_finite", "with NaN or infinite pixels"),
        ("flat", "of one flat colour"),
    ):
        counts = [report[side][flag] for side in ("original", "compressed")]
        if any(counts):
            told.append(f"Pictures {what}: {counts[0]} original, {counts[1]} compressed.")
    counts = [sum(bool(s[side].get("vae_upcast")) for s in report["samples"]) for side in ("original", "compressed")]
    if any(counts):
        told.append(
            f"Pictures whose VAE overflowed float16 and decoded again in higher precision, which their time includes: "
            f"{counts[0]} original, {counts[1]} compressed."
        )
    return told


def _input_findings(report: Mapping[str, Any]) -> list[str]:
    """What both pipelines drew from besides the prompts."""
    told = []
    for name, given in (report["settings"].get("input_pictures") or {}).items():
        if not isinstance(given, str):
            given = given[0]["path"] if len(given) == 1 else f"{len(given)} files, by turns, from {given[0]['path']} on"
        told.append(f"Both were given the same {name}: {given}.")
    return told


def _joules(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g} J"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _signed(value: float) -> str:
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text


def _scaled(value: float | None, units: Sequence[tuple[str, float]]) -> str:
    if value is None:
        return MISSING
    unit, size = next(((unit, size) for unit, size in units if abs(value) >= size), units[-1])
    number = value / size
    return f"{number:.0f} {unit}".strip() if size == 1 else f"{number:.1f} {unit}"
