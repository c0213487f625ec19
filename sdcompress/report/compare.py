"""Many reports as one comparison: a row each, which are dominated, and what makes them hard to compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdcompress.errors import UserError
from sdcompress.report.read import ReportError

SCHEMA_VERSION = 1
COSTS = ("weights_bytes", "latency_s")
# Metric -> its name in words, its unit, and whether more is better. Others are looked up in each report's `metrics`.
METRICS = {
    "psnr_db": ("same-seed PSNR", "dB", True),
    "clip_score": ("CLIP score drift", "", True),
    "ssim": ("same-seed SSIM", "", True),
}


def compare_reports(reports: Mapping[str, Mapping[str, Any]], metric: str = "psnr_db") -> dict[str, Any]:
    """The comparison as JSON-safe values: `rows` in the order given, `warnings`, and what the metric is.

    A row says on which fronts it lies: `front["weights_bytes"]` is True when no other report has both fewer bytes and
    at least its quality, False when one has (`dominated_by` names one), None where something was not measured.
    """
    words, unit, higher = describe_metric(reports, metric)
    rows = []
    for label, report in reports.items():
        try:
            rows.append(_row(label, report, metric))
            _ = [value_of(report) for value_of in ASPECTS.values()]
        except (KeyError, TypeError, AttributeError) as error:
            raise ReportError(f"{label}: is damaged ({type(error).__name__}: {error}); evaluate again") from None
    for cost in COSTS:
        mark_front(rows, cost, higher)
    return {
        "schema_version": SCHEMA_VERSION,
        "metric": {"name": metric, "words": words, "unit": unit, "higher_is_better": higher},
        "rows": rows,
        "warnings": find_differences(reports),
    }


def describe_metric(reports: Mapping[str, Mapping[str, Any]], metric: str) -> tuple[str, str, bool]:
    """The metric in words, its unit, and whether more of it is better. UserError names the metrics that there are."""
    if metric in METRICS:
        return METRICS[metric]
    named: dict[str, Any] = {}
    for report in reports.values():
        named |= report.get("metrics") or {}
    if metric not in named:
        known = ", ".join([*METRICS, *sorted(set(named) - set(METRICS))])
        raise UserError(f"--metric {metric}: no report has it; use one of {known}")
    return metric.replace("_", " "), named[metric].get("unit") or "", named[metric].get("higher_is_better", True)


def mark_front(rows: Sequence[dict[str, Any]], cost: str, higher_is_better: bool) -> None:
    """Sets `front[cost]` and `dominated_by[cost]` of each row: less cost and better quality dominate."""
    sign = 1 if higher_is_better else -1
    known = [(row, row[cost], sign * quality) for row in rows if (quality := quality_of(row)) is not None and row[cost]]
    for row in rows:
        row["front"][cost], row["dominated_by"][cost] = None, None
    for row, price, quality in known:
        row["dominated_by"][cost] = next(
            (
                other["label"]
                for other, its_price, its_quality in known
                if its_price <= price and its_quality >= quality and (its_price < price or its_quality > quality)
            ),
            None,
        )
        row["front"][cost] = row["dominated_by"][cost] is None


def quality_of(row: Mapping[str, Any]) -> float | None:
    """The row's quality by the chosen metric; infinite where all pictures are identical and it is a PSNR."""
    if row["quality"] is None and row["identical"] and row["metric"] == "psnr_db":
        return math.inf
    value: float | None = row["quality"]
    return value


def _row(label: str, report: Mapping[str, Any], metric: str) -> dict[str, Any]:
    compressed, change, similarity = report["compressed"], report["change"], report["similarity"]
    quality, interval = _quality(report, metric)
    return {
        "label": label,
        "original": report["original"]["name"],
        "compressed": compressed["name"],
        "metric": metric,
        "quality": quality,
        "quality_interval_95": interval,
        "identical": bool(similarity["pairs"]) and similarity["identical"] == similarity["pairs"],
        "parameters": compressed["parameters"],
        "size_bytes": compressed["size_bytes"],
        "weights_bytes": compressed["weights_bytes"],
        "size_ratio": change["weights_bytes"]["ratio"],
        "original_weights_bytes": report["original"]["weights_bytes"],
        "bits_per_weight": compressed["bits_per_weight"],
        "peak_memory_bytes": compressed["peak_memory_bytes"],
        "latency_s": compressed["latency_s"],
        "latency_ratio": change["latency_s"]["ratio"],
        "clip_score_drift": change["clip_score"]["difference"],
        "clip_score_drift_interval_95": change["clip_score"]["interval_95"],
        "psnr_db": similarity["psnr_db"]["mean"],
        "ssim": similarity["ssim"]["mean"],
        "pictures": compressed["pictures"],
        "verdict": ((report.get("verdicts") or {}).get(metric) or {}).get("verdict"),
        "front": {},
        "dominated_by": {},
    }


def _quality(report: Mapping[str, Any], metric: str) -> tuple[float | None, Sequence[float] | None]:
    if metric == "clip_score":
        figure = report["change"]["clip_score"]
        return figure["difference"], figure["interval_95"]
    if metric in METRICS:
        figure = report["similarity"][metric]
        return figure["mean"], figure["interval_95"]
    figure = (report.get("metrics") or {}).get(metric) or {}
    return figure.get("mean"), figure.get("interval_95")


def find_differences(reports: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What differs between reports that a comparison takes for equal: {"aspect", "groups": [{"value", "reports"}]}.

    The largest group comes first, as what the others differ from.
    """
    found = []
    for aspect, value_of in ASPECTS.items():
        groups: dict[str, list[str]] = {}
        for label, report in reports.items():
            groups.setdefault(value_of(report), []).append(label)
        if len(groups) > 1:
            ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
            found.append({"aspect": aspect, "groups": [{"value": v, "reports": labels} for v, labels in ordered]})
    return found


def warning_texts(warnings: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence a difference, that names the reports which differ from most."""
    told = []
    for warning in warnings:
        first, *others = warning["groups"]
        rest = "; ".join(f"{group['value']} in {', '.join(group['reports'])}" for group in others)
        told.append(f"{warning['aspect']} differ: {first['value']} in {_most(first['reports'])}, but {rest}")
    return told


def _most(labels: Sequence[str]) -> str:
    return ", ".join(labels) if len(labels) <= 3 else f"{len(labels)} reports ({labels[0]}, {labels[1]}, …)"


def _prompts(report: Mapping[str, Any]) -> str:
    import hashlib

    prompts = list(dict.fromkeys(sample["prompt"] for sample in report["samples"]))
    digest = hashlib.sha256("\n".join(prompts).encode("utf-8")).hexdigest()[:6]
    return f"{len(prompts)} prompts of {report['settings']['prompt_set']} (#{digest})"


def _seeds(report: Mapping[str, Any]) -> str:
    seeds = sorted(sample["seed"] for sample in report["samples"])
    if not seeds:
        return "none"
    whole = seeds == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]} to {seeds[-1]}" if whole else f"{len(seeds)} from {seeds[0]} to {seeds[-1]}"


def _sampler(report: Mapping[str, Any]) -> str:
    settings = report["settings"]
    size = f"{settings.get('width') or 'own'} x {settings.get('height') or 'own'} pixels"
    return f"{settings['num_inference_steps']} steps, guidance {settings['guidance_scale']}, {size}"


def _scorer(report: Mapping[str, Any]) -> str:
    return report["scorer"]["name"] if report.get("scorer") else "none"


def _machine(report: Mapping[str, Any]) -> str:
    environment = report["environment"]
    device = environment["device_name"]["compressed"] or environment["device"]["compressed"]
    threads = environment["threads"]["compressed"]
    return f"{environment['cpu']}, {environment['cores']} cores, {device}, {threads} threads"


def _original(report: Mapping[str, Any]) -> str:
    return f"{report['original']['name']} ({report['original']['parameters']:,} parameters)"


ASPECTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "originals": _original,
    "prompts": _prompts,
    "seeds": _seeds,
    "sampler settings": _sampler,
    "scorers": _scorer,
    "machines": _machine,
}
