"""What a pipeline consists of: the parameters of each component and kind of layer, and their size in bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from sdcompress.sources.pruned_config import METHOD
from sdcompress.sources.quantized_source import quantized_as
from sdcompress.sources.source import SAFETY_CHECKERS, Source
from sdcompress.sources.spec import KINDS, ComponentSpec, parameters_by_kind

BITS: dict[str, int] = {"fp32": 32, "fp16": 16, "int8": 8, "4-bit": 4}
KINDS_NOTE = "biases count as other, not with their layer's weights"
BYTES_NOTE = (
    "fp32, fp16, int8 and 4-bit are parameters x bits / 8: plain arithmetic, no scales, every parameter at that width"
)


def describe(source: Source) -> dict[str, Any]:
    """Return the pipeline as data for JSON: number of parameters and sizes in bytes, of each component and in total.

    Examples:
        >>> from sdcompress import open_source
        >>> describe(open_source("tiny-sd"))["pipeline_class"]
        'StableDiffusionPipeline'
    """
    components = {name: _describe_component(spec) for name, spec in sorted(source.components.items())}
    counted = [spec for name, spec in source.components.items() if name not in SAFETY_CHECKERS]
    return {
        "model": source.name,
        "kind": source.kind,
        "hub_id": source.hub_id,
        "path": str(source.path) if source.path else None,
        "pipeline_class": source.pipeline_class,
        "components": components,
        "totals": {
            "without_safety_checker": _total(counted),
            "with_safety_checker": _total(source.components.values()),
        },
        "has_safety_checker": any(name in SAFETY_CHECKERS for name in source.components),
        "size_bytes": source.size_bytes if source.path else None,
        "notes": [*source.notes, *_quantized_notes(source), KINDS_NOTE, BYTES_NOTE],
    }


def bytes_at(parameters: int, bits: int) -> int:
    """Return the size in bytes of `parameters` weights of `bits` bits each, without scales.

    Examples:
        >>> bytes_at(3, 4)
        2
    """
    return -(-parameters * bits // 8)


def _quantized_notes(source: Source) -> list[str]:
    """Return a remark for each component that is quantized. Only sdcompress's artifacts say how many weights it has."""
    notes = []
    for name, spec in source.components.items():
        quantized = quantized_as(spec)
        if quantized is not None:
            own = spec.config.get("quantization_config", {}).get("quant_method") == METHOD
            counted = "" if own else "; its parameters are counted as they are stored"
            notes.append(f"{name} is quantized already ({quantized}){counted}")
    return notes


def _describe_component(spec: ComponentSpec) -> dict[str, Any]:
    dtypes = Counter(tensor.dtype for tensor in spec.tensors.values())
    return {
        "class": spec.class_name,
        "library": spec.library,
        **_total([spec]),
        "dtypes": sorted(dtypes, key=lambda dtype: (-dtypes[dtype], dtype)),
        "bits_per_weight": round(spec.bits_per_weight, 4),
    }


def _total(specs: Iterable[ComponentSpec]) -> dict[str, Any]:
    by_kind = dict.fromkeys(KINDS, 0)
    weights_bytes = 0
    for spec in specs:
        weights_bytes += spec.weights_bytes
        for kind, count in parameters_by_kind(spec).items():
            by_kind[kind] += count
    parameters = sum(by_kind.values())
    return {
        "parameters": parameters,
        "parameters_by_kind": by_kind,
        "bytes_at": {name: bytes_at(parameters, bits) for name, bits in BITS.items()},
        "weights_bytes": weights_bytes,
    }
