"""The graph passes, one in each file, and their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.errors import InternalError

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class PassResult:
    """What a pass did: the number of candidates, and how many of them it changed."""

    name: str
    candidates: int
    matched: int


# A pass changes the graph in place and returns (candidates, matched).
Pass = Callable[["ir.Model"], tuple[int, int]]


def run_passes(model: ir.Model, passes: dict[str, Pass], where: str) -> list[PassResult]:
    """Run the passes in order and return what each did.

    Args:
        where: component and graph, for errors.

    Raises:
        InternalError: a pass found candidates and could change none of them.
    """
    results = []
    for name, apply in passes.items():
        candidates, matched = apply(model)
        if candidates and not matched:
            raise InternalError(f"{where}: graph pass {name} matched none of its {candidates} candidates")
        results.append(PassResult(name, candidates, matched))
    return results


def standard_passes(attention: str) -> dict[str, Pass]:
    """Return name -> pass, in order, for `attention: fused` or `standard`."""
    from sdcompress.backends.onnx.passes import (
        attention_mha,
        attention_standard,
        geglu,
        group_norm,
        idle_squeeze,
        linear,
        projection,
        rms_norm,
    )

    fused = attention == "fused"
    return {
        "idle squeeze": idle_squeeze.apply,
        "linear": linear.apply,
        "projection to tokens": projection.apply,
        "attention": attention_mha.apply if fused else attention_standard.apply,
        "geglu": geglu.apply,
        "group normalization": group_norm.apply,
        "rms normalization": rms_norm.apply,
    }
