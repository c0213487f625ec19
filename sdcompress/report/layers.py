"""The tables of layers: what became of them, by format and one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from sdcompress.files.manifest import LayerStatus
from sdcompress.report.model import LayerFacts, ReportData
from sdcompress.report.number_text import MISSING, count_text, number_text
from sdcompress.report.table import Cell, Table

PRUNED = (LayerStatus.REMOVED, LayerStatus.NARROWED, LayerStatus.SPARSE)  # what their reason says was taken away
NOTE = (
    "Weights and outputs: how close they are to the original ones, as signal to quantization noise ratio in dB; higher "
    "is closer. Outputs are measured where the layer's inputs were calibrated."
)


def format_table(report: ReportData, *, kept: bool = True) -> Table:
    """Return one row for each format of each component, the ratios as median and lowest of its layers.

    kept: with the layers that were left alone.
    """
    groups: dict[tuple[str, str], list[LayerFacts]] = {}
    for layer in report.compressed.layers:
        if kept or layer.format is not None or layer.status in PRUNED:
            groups.setdefault((layer.component, layer_text(layer)), []).append(layer)
    rows = [
        (
            component,
            text,
            Cell(f"{len(layers)}", detail=f"({count_text(sum(layer.parameters for layer in layers))})"),
            _bits(layers),
            _spread(layer.weight_sqnr_db for layer in layers),
            _spread(layer.output_sqnr_db for layer in layers),
        )
        for (component, text), layers in groups.items()
    ]
    columns = ("component", "format", "layers", "bits", "weights, dB", "outputs, dB")
    note = f"{NOTE} The median over the layers, and the lowest in brackets; beside the layers their parameters."
    return Table(columns, rows, ("component", "format"), "Formats", note)


def layer_table(layers: Iterable[LayerFacts]) -> Table:
    """Return one row for each layer, the largest error first."""
    rows = [
        (
            f"{layer.component}.{layer.layer}",
            layer.kind,
            Cell(f"{layer.parameters:,}", number=layer.parameters),
            layer_text(layer),
            Cell(number_text(layer.bits_per_weight), number=layer.bits_per_weight),
            _decibels(layer.weight_sqnr_db),
            _decibels(layer.output_sqnr_db),
        )
        for layer in sorted(layers, key=_error)
    ]
    columns = ("layer", "kind", "parameters", "format", "bits", "weights, dB", "outputs, dB")
    return Table(columns, rows, ("layer", "kind", "format"), "Every layer, the largest error first")


def layer_text(layer: LayerFacts) -> str:
    """Return a layer's format and how its codes were chosen, such as `int4/64, gptq`, or why it has none."""
    if layer.format is None:
        if layer.status in PRUNED:
            return layer.reason or MISSING
        return f"left alone: {layer.reason}" if layer.reason else "left alone"
    rounding = "" if layer.rounding == "nearest" else f", {layer.rounding}"
    activations = ", 8-bit activations" if layer.activations else ""
    zeros = f", {layer.sparsity:.0%} zeros" if layer.sparsity else ""
    return layer.format + rounding + activations + zeros


def _error(layer: LayerFacts) -> tuple[float, str]:
    known = (layer.output_sqnr_db, layer.weight_sqnr_db)
    return next((value for value in known if value is not None), float("inf")), layer.layer


def _bits(layers: Sequence[LayerFacts]) -> str:
    if layers[0].format is None:
        return MISSING
    bits = sum((layer.bits_per_weight or 0.0) * layer.parameters for layer in layers)
    return number_text(bits / sum(layer.parameters for layer in layers))


def _spread(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.1f} ({min(known):.1f})" if known else MISSING


def _decibels(value: float | None) -> Cell:
    return Cell(number_text(value, 1), number=value)
