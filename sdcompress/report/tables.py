"""The tables of a report: each is made once, for the terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sdcompress.evaluation.samples import SIDES
from sdcompress.report.gates import value_text
from sdcompress.report.model import ReportData
from sdcompress.report.number_text import (
    MISSING,
    bytes_text,
    count_text,
    interval_text,
    joules_text,
    number_text,
    ratio_text,
    seconds_text,
    signed_text,
)
from sdcompress.report.quality_model import Change, ComponentMetrics, Curve, Difference, Estimate, StepFigures, Variant
from sdcompress.report.sample_metrics import PAIR_METRICS, SET_METRICS
from sdcompress.report.table import Cell, Table

NOT_JUDGED = "not judged"
FROM_IDENTICAL = Cell(MISSING, detail="from identical")  # a change in dB from infinity has no figure
PIPELINE_FIGURES = (
    ("parameters", "parameters", count_text),
    ("size_bytes", "size on disk", bytes_text),
    ("weights_bytes", "weights on disk", bytes_text),
    ("bits_per_weight", "bits per weight", number_text),
    ("resident_weights_bytes", "weights in memory", bytes_text),
    ("peak_memory_bytes", "peak memory", bytes_text),
    ("peak_memory_over_imports_bytes", "  after imports", bytes_text),
    ("peak_device_memory_bytes", "peak device memory", bytes_text),
    ("load_s", "time to load", seconds_text),
    ("latency_s", "time per picture", seconds_text),
    ("images_per_minute", "pictures per minute", number_text),
    ("energy_j", "energy per picture", joules_text),
    ("macs", "multiply-adds", count_text),
    ("clip_score", "CLIP score", number_text),
)
# By what share single measurements differ: memory and load time are measured once per process.
TOLERANCES = {
    "parameters": 0.005,
    "size_bytes": 0.005,
    "weights_bytes": 0.005,
    "resident_weights_bytes": 0.005,
    "peak_memory_bytes": 0.02,
    "peak_device_memory_bytes": 0.02,
    "load_s": 0.25,
}
QUALITY_NOTE = (
    "Beside each figure stands the noise floor: the same figure between the original and itself, drawn again with "
    "another seed, in bfloat16, or in batches of 2. PSNR is in dB. Better when higher: {higher}. Better when lower: "
    "{lower}. CLIP drift is judged by its interval and by how far redrawing moves it, similarity by what another "
    "arithmetic leaves of it."
)
STEP_NOTE = (
    "Each component after the first, the second, ... step of its recipe, in the original pipeline: what the step "
    "saves, how far the pictures are from the original's so far (PSNR in dB, CLIP drift), and what the step alone "
    "changed (gain; below 0 is a loss)."
)


def pipeline_table(report: ReportData) -> Table:
    """Return every figure of both pipelines, its change, and whether that is better or worse."""
    original, compressed = report.original, report.compressed
    rows: list[tuple[Cell | str, ...]] = []
    for name, label, text in PIPELINE_FIGURES:
        before, after = getattr(original, name), getattr(compressed, name)
        if before is None and after is None:
            continue
        change = getattr(report.change, name)
        if name == "clip_score":
            told, verdict = _signed_cell(change, 2), _verdict(report, name)
        else:
            told = Cell(ratio_text(change.ratio), interval_text(change.ratio_interval_95, number_text))
            verdict = cost_verdict(name, change)
        rows.append((label, text(before), text(after), told, verdict))
        if name == "latency_s":
            slow = [(side.latency_s_quantiles or {}).get("p95") for side in (original, compressed)]
            ratio = None if slow[0] is None or slow[1] is None else slow[1] / slow[0]
            rows.append(("  95th percentile", *map(seconds_text, slow), ratio_text(ratio), ""))
    columns = ("", "original", "compressed", "change", "verdict")
    return Table(columns, rows, ("", "verdict"), "The pipeline as a whole")


def cost_verdict(name: str, change: Change) -> str:
    """Return "better" (less), "worse" or "similar" for a figure such as `size_bytes`; nothing where it is not judged.

    Time per picture is judged by its 95 % interval.
    """
    ratio, interval = change.ratio, change.ratio_interval_95
    if ratio is not None and ratio != 1 and name in TOLERANCES:
        interval = (ratio - TOLERANCES[name], ratio + TOLERANCES[name])
    if interval is None:
        return ""
    return "better" if interval[1] < 1 else "worse" if interval[0] > 1 else "similar"


def component_table(report: ReportData) -> Table:
    """Return what each component costs, the original above the compressed."""
    rows = []
    for name in dict.fromkeys((*report.original.components, *report.compressed.components)):
        for side in SIDES:
            part = report.side(side).components.get(name)
            figures = [
                text(None if part is None else getattr(part, key))
                for key, text in (
                    ("parameters", count_text),
                    ("weights_bytes", bytes_text),
                    ("bits_per_weight", number_text),
                    ("latency_s", seconds_text),
                )
            ]
            rows.append((name if side == "original" else "", side, *figures))
    columns = ("component", "", "parameters", "weights", "bits", "time")
    return Table(columns, rows, ("component", ""), "Each component", "Bits are per weight, times per picture.")


def quality_tables(report: ReportData) -> list[Table]:
    """Return the metrics, those of each component alone, and the attribution with its steps."""
    return [
        quality_table(report),
        component_metric_table(report),
        attribution_table(report),
        step_table(report),
    ]


def quality_table(report: ReportData) -> Table:
    """Return each metric, the original's against itself for each source of noise, and the verdict."""
    floor = report.noise_floor.sources if report.noise_floor else {}
    rows: list[tuple[Cell | str, ...]] = []
    for name, kind in PAIR_METRICS.items():
        own = _pair_figure(report, name, kind.digits)
        if own.text != MISSING:
            others = [_roomy(_variant_figure(source, name, kind.digits)) for source in floor.values()]
            rows.append((kind.words, own, *others, _verdict(report, name) or NOT_JUDGED))
    for name, kind in SET_METRICS.items():
        figure = report.set_metrics.get(name)
        if figure is not None:
            seed = MISSING if figure.floor is None else number_text(figure.floor.seed, kind.digits)
            others = [Cell(seed if source == "seed" else MISSING) for source in floor]
            told = Cell(number_text(figure.value, kind.digits), detail=f"over {figure.pictures} pictures")
            rows.append((kind.words, told, *others, NOT_JUDGED if figure.reliable else "unreliable"))
    columns = ("", "compressed", *(source.label for source in floor.values()), "verdict")
    return Table(columns, rows, ("", "verdict"), "Metrics", _quality_note())


def _quality_note() -> str:
    kinds = (*PAIR_METRICS.values(), *SET_METRICS.values())
    higher = ", ".join(kind.words for kind in kinds if kind.higher_is_better)
    return QUALITY_NOTE.format(
        higher=higher, lower=", ".join(kind.words for kind in kinds if not kind.higher_is_better)
    )


def component_metric_table(report: ReportData) -> Table:
    """Return what each component alone computes differently."""
    rows = [(name, _component_text(metrics)) for name, metrics in (report.component_metrics or {}).items()]
    note = "Both components got the same input, which the original pipeline made."
    columns = ("component", "alone, against the original")
    return Table(columns, [row for row in rows if row[1]], columns, "Each component alone", note)


def attribution_table(report: ReportData) -> Table:
    """Return what each component saves and costs, swapped into the original pipeline."""
    rows = [
        (
            entry.name,
            bytes_text(entry.saved_bytes),
            _roomy(_variant_figure(entry, "psnr_db", 1)),
            _roomy(_variant_figure(entry, "clip_score", 2)),
            ratio_text(entry.latency_s.ratio),
            _variant_verdict(entry),
        )
        for entry in report.attribution or ()
    ]
    columns = ("component", "saves", "PSNR, dB", "CLIP drift", "time", "verdict")
    note = "The original with one component of the compressed pipeline at a time: what each saves and costs."
    return Table(columns, rows, ("component", "verdict"), "Attribution", note)


def step_table(report: ReportData) -> Table:
    """Return what each step of each component's recipe saves and costs, in the original pipeline."""
    columns = ("after step", "saves", "PSNR", "gain", "CLIP drift", "gain", "time", "verdict")
    rows: list[tuple[Cell | str, ...]] = []
    remarks: dict[str, None] = {}  # kept once each, in their order
    for entry in report.attribution or ():
        if entry.ladder:
            rows.append((entry.name, *("" for _ in columns[1:])))
        if entry.ladder_not_measured:
            remarks[f"Steps were not measured one by one: {entry.ladder_not_measured}."] = None
        for step in entry.ladder:
            rows.append((f"+ {step.step}", *_step_cells(step)))
            remarks |= {f"{entry.name} after {step.step}: {told}.": None for told in _step_remarks(step)}
    return Table(columns, rows, ("after step", "verdict"), "Step by step", STEP_NOTE, tuple(remarks))


def gate_table(report: ReportData) -> Table:
    """Return each gate, what was measured, and whether it passed."""
    rows = [(each.gate, value_text(each), "passed" if each.passed else "FAILED") for each in report.gates]
    return Table(("gate", "measured", "result"), rows, ("gate", "result"), "Gates")


def _verdict(report: ReportData, metric: str) -> str:
    return report.verdicts[metric].verdict if metric in report.verdicts else ""


def _pair_figure(report: ReportData, name: str, digits: int) -> Cell:
    if name == "clip_score":
        return _signed_cell(report.change.clip_score, digits)
    if name == "psnr_db" and report.similarity.all_identical:
        return Cell("identical")
    return _cell(getattr(report.similarity, name, None) or report.metrics.get(name), digits)


def _variant_figure(variant: Variant, name: str, digits: int) -> Cell:
    if name == "clip_score":
        return _signed_cell(variant.clip_score, digits)
    if name == "psnr_db" and variant.all_identical:
        return Cell("identical")
    return _cell(variant.metric(name), digits)


def _cell(figure: Estimate | None, digits: int) -> Cell:
    if figure is None:
        return Cell(MISSING)
    return Cell(number_text(figure.mean, digits), interval_text(figure.interval_95, number_text, digits))


def _signed_cell(figure: Difference | Change, digits: int) -> Cell:
    interval = interval_text(figure.interval_95, signed_text, digits)
    return Cell(signed_text(figure.difference, digits), interval)


def _roomy(cell: Cell) -> Cell:
    """The cell with its interval only where there is room."""
    return Cell(cell.text, detail=cell.interval)


def _variant_verdict(entry: Variant) -> Cell:
    """The verdict, and where there is room the metrics that gave it."""
    if entry.verdict is None:
        return Cell(NOT_JUDGED)
    of = [PAIR_METRICS[name].words for name, each in entry.verdicts.items() if each.verdict == entry.verdict]
    return Cell(entry.verdict, detail=f"({', '.join(of)})" if of and entry.verdict != "within noise" else "")


def _step_cells(step: StepFigures) -> Sequence[Cell | str]:
    so_far = "" if step.weights_bytes is None else f"({bytes_text(step.weights_bytes)} left)"
    saved = Cell(bytes_text(step.saved_bytes), detail=so_far)
    if step.not_measured is not None or step.adds is None:
        return (saved, *(MISSING for _ in range(5)), "not measured")
    gain = _signed_cell(step.adds.psnr_db, 1) if step.adds.psnr_db.difference is not None else FROM_IDENTICAL
    psnr, drift = _variant_figure(step, "psnr_db", 1), _variant_figure(step, "clip_score", 2)
    gained = _signed_cell(step.adds.clip_score, 2)
    figures = [cell if cell is FROM_IDENTICAL else _roomy(cell) for cell in (psnr, gain, drift, gained)]
    return (saved, *figures, ratio_text(step.latency_s.ratio), _variant_verdict(step))


def _step_remarks(step: StepFigures) -> Iterable[str]:
    if step.not_measured is not None:
        return (f"not measured: {step.not_measured}",)
    together = " and ".join((*step.together_with, step.step))
    return (
        *((step.note,) if step.note else ()),
        *((f"its gain is that of {together} together",) if step.together_with else ()),
    )


def _component_text(metrics: ComponentMetrics) -> str:
    if metrics.cosine is not None:
        cosine = metrics.cosine
        return f"cosine of embeddings {_near_one(cosine.mean)} (lowest {_near_one(cosine.min)})"
    if metrics.noise_sqnr_db is not None:
        return _noise_text(metrics.noise_sqnr_db)
    if metrics.decode_psnr_db is not None:
        psnr = metrics.decode_psnr_db
        told = "identical" if psnr.mean is None else f"{psnr.mean:.1f} dB (lowest {psnr.min:.1f})"
        return f"PSNR of decoded pictures {told}"
    if metrics.agreement is not None:
        flagged = f"flagged: {metrics.flagged_original} original, {metrics.flagged_compressed} compressed"
        return f"agrees on {100 * metrics.agreement:.0f} % of {metrics.pictures} pictures ({flagged})"
    return ""


def _near_one(cosine: float | None) -> str:
    if cosine is None:
        return MISSING
    return f"{cosine:.4f}" if cosine < 0.999 else f"1 - {max(0.0, 1 - cosine):.1e}"


def _noise_text(sqnr: Curve) -> str:
    if sqnr.mean is None:
        return "predicted noise identical at every timestep"
    told = f"SQNR of predicted noise {sqnr.mean:.1f} dB"
    known = [(at, value) for at, value in zip(sqnr.timesteps, sqnr.values, strict=False) if value is not None]
    if not known:
        return told
    (first, first_db), (last, last_db) = known[0], known[-1]
    return f"{told} ({first_db:.1f} at timestep {first:g}, {last_db:.1f} at {last:g})"
