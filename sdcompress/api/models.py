"""Models: what they are, opened to draw with, and one picture drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from typing_extensions import Unpack

from sdcompress.sources.opening import open_source
from sdcompress.sources.source import Source

if TYPE_CHECKING:
    from sdcompress.planning.advice import Diagnosis


class SourceOptions(TypedDict, total=False):
    """How a model is read; see `open_source`. Functions that take a model's name take these as keywords."""

    variant: str | None
    revision: str | None
    allow_pickle: bool
    like: str | None
    prediction: str | None


def source_of(model: str | Path | Source, options: SourceOptions) -> Source:
    """Return the source that a function's `model` argument means.

    Args:
        model: what `open_source` takes, or its result.
        options: how the model is read; of no use with a `Source`, which was read already.
    """
    return model if isinstance(model, Source) else open_source(str(model), **options)


def describe(
    model: str | Path | Source, *, layers: bool = False, **source_options: Unpack[SourceOptions]
) -> dict[str, Any]:
    """Return what a model consists of: exact parameters and bytes of each component and in total, ready for JSON.

    Args:
        model: what `open_source` takes, or its result. No weight is read.
        layers: add `layers`: for each component, every layer that owns parameters, with its kind and shape.
        source_options: how the model is read.

    Examples:
        >>> describe("sd15")["totals"]["without_safety_checker"]["parameters"]
        1066235307
    """
    from sdcompress.sources.inspect_model import describe as describe_source
    from sdcompress.sources.spec import layers_of

    source = source_of(model, source_options)
    description = describe_source(source)
    if layers:
        description["layers"] = {
            name: [{"layer": layer.name, "kind": layer.kind, "shape": layer.shape} for layer in layers_of(spec)]
            for name, spec in source.components.items()
        }
    return description


def diagnose() -> Diagnosis:
    """Return what this machine can run, what is missing, and which shipped recipes suit it.

    Each library and each provider of ONNX Runtime is tried in a process of its own. Sizes are in bytes; None means
    unknown; `problem` says why a trial failed.

    Examples:
        >>> diagnose().advice[0].recipe  # doctest: +SKIP
        'onnx-int8'
    """
    from sdcompress.backends.doctor import find_out
    from sdcompress.planning.advice import with_advice
    from sdcompress.planning.recipe import shipped_recipes

    return with_advice(find_out(), shipped_recipes())
