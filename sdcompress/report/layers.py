"""What became of each layer of a compressed pipeline, as rows: one for each format, and one for each layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from sdcompress.files.manifest import LayerEntry, LayerStatus
from sdcompress.report.wording import MISSING, count_text

FORMAT_COLUMNS = ("component", "format", "layers", "parameters", "bits", "weights, dB", "outputs, dB")
LAYER_COLUMNS = ("layer", "kind", "parameters", "format", "bits", "weights, dB", "outputs, dB")


def format_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row for each format of each component: FORMAT_COLUMNS, errors as medians over its layers and the lowest."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for layer in report["compressed"].get("layers") or ():
        groups.setdefault((layer["component"], described(layer)), []).append(layer)
    return [
        (
            component,
            text,
            f"{len(layers)}",
            count_text(sum(layer["parameters"] for layer in layers)),
            _bits(layers),
            _spread(layer.get("weight_sqnr_db") for layer in layers),
            _spread(layer.get("output_sqnr_db") for layer in layers),
        )
        for (component, text), layers in groups.items()
    ]


def layer_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row for each quantized layer: LAYER_COLUMNS, those with the largest error of their output first."""
    quantized = [layer for layer in report["compressed"].get("layers") or () if layer["format"] is not None]
    return [
        (
            f"{layer['component']}.{layer['layer']}",
            layer["kind"],
            f"{layer['parameters']:,}",
            described(layer),
            f"{layer['bits_per_weight']:.2f}",
            _decibels(layer.get("weight_sqnr_db")),
            _decibels(layer.get("output_sqnr_db")),
        )
        for layer in sorted(quantized, key=_error)
    ]


def described(layer: Mapping[str, Any]) -> str:
    """A layer's format and how its codes were chosen, `int4/64, gptq`, or why it has none."""
    if layer["format"] is None:
        if is_pruned(layer):
            return str(layer["reason"])
        return f"left alone: {layer['reason']}" if layer.get("reason") else "left alone"
    rounding = layer.get("rounding", "nearest")
    activations = ", 8-bit activations" if layer.get("activations") else ""
    zeros = f", {layer['sparsity']:.0%} zeros" if layer.get("sparsity") else ""
    return layer["format"] + ("" if rounding == "nearest" else f", {rounding}") + activations + zeros


def is_pruned(layer: Mapping[str, Any]) -> bool:
    """Return whether pruning took something away from the layer; its reason then says what."""
    status = LayerStatus(layer["status"]) if "status" in layer else LayerEntry.model_validate(layer).status
    return status in (LayerStatus.REMOVED, LayerStatus.NARROWED, LayerStatus.SPARSE)


def _error(layer: Mapping[str, Any]) -> tuple[float, str]:
    known = (layer.get("output_sqnr_db"), layer.get("weight_sqnr_db"))
    return next((value for value in known if value is not None), float("inf")), layer["layer"]


def _bits(layers: Sequence[Mapping[str, Any]]) -> str:
    if layers[0]["format"] is None:
        return MISSING
    parameters = sum(layer["parameters"] for layer in layers)
    return f"{sum(layer['bits_per_weight'] * layer['parameters'] for layer in layers) / parameters:.2f}"


def _spread(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.1f} ({min(known):.1f})" if known else MISSING


def _decibels(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"
