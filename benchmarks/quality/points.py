"""From pictures to points: quality of each contender against the original's pictures, and who beats whom.

A point keeps raw samples; means and intervals are derived from them here whenever they are needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.quality.contender import OURS, PEERS, Contender
from benchmarks.quality.drawing import picture_name
from sdcompress.report.statistics import mean, mean_interval

if TYPE_CHECKING:
    import numpy as np

Point = Mapping[str, Any]


class Pictures:
    """The original's pictures with their CLIP scores, to compare others with."""

    def __init__(self, folder: Path, drawings: Sequence[Mapping[str, Any]], scorer: Path):
        from sdcompress.evaluation.metrics.clip_score import ClipScorer

        self._clip = ClipScorer(scorer)
        self._drawings = drawings
        self._original = self._open(folder)
        self.clip_scores = self._scores(self._original)

    def compare(self, folder: Path) -> dict[str, list[float | None]]:
        """PSNR in decibels (None: identical) and change of CLIP score of each picture in the folder."""
        from sdcompress.evaluation.metrics.psnr import psnr_db

        pictures = self._open(folder)
        psnr = [psnr_db(*pair) for pair in zip(self._original, pictures, strict=True)]
        change = [new - old for new, old in zip(self._scores(pictures), self.clip_scores, strict=True)]
        return {"psnr_db": [None if math.isinf(value) else value for value in psnr], "clip_change": [*change]}

    def _open(self, folder: Path) -> list[np.ndarray]:
        import numpy as np
        from PIL import Image

        files = [folder / picture_name(drawing["index"]) for drawing in self._drawings]
        return [np.asarray(Image.open(file).convert("RGB")) for file in files]

    def _scores(self, pictures: Sequence[np.ndarray]) -> list[float]:
        prompts = [drawing["prompt"] for drawing in self._drawings]
        return [self._clip.scores([picture], prompt)[0] for picture, prompt in zip(pictures, prompts, strict=True)]


def make_points(
    contender: Contender, result: Mapping[str, Any], parameters: Mapping[str, int], samples: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The contender's points: one, and where its library stores codes less tightly than it could, one as if packed.

    parameters: component -> how many weights the original has.
    """
    point = {
        "key": contender.key,
        "name": contender.name,
        "label": contender.label,
        "owner": contender.owner,
        "family": contender.family,
        "bits": contender.bits,
        "scope": contender.scope,
        "if_packed": False,
        "failed": result["failed"],
    }
    if result["failed"] is not None:
        return [point]
    left = {name: sum(layers.values()) for name, layers in result["left_alone"].items()}
    point |= {
        "component_bytes": result["component_bytes"],
        "total_bytes": sum(result["component_bytes"].values()),
        "saved_bytes": result.get("saved_bytes", {}),
        "left_in_float": {name: count / parameters[name] for name, count in left.items()},
        "layers_left_in_float": {name: len(layers) for name, layers in result["left_alone"].items()},
        **samples,
    }
    packed = result.get("packed_bytes", result["component_bytes"])
    if packed == result["component_bytes"]:
        return [point]
    dense = {"component_bytes": packed, "total_bytes": sum(packed.values()), "saved_bytes": {}, "if_packed": True}
    return [point, {**point, **dense, "key": f"{contender.key} if packed", "label": f"{contender.label}, if packed"}]


def drawn(points: Iterable[Point], owner: str) -> list[Point]:
    """The owner's points that have pictures."""
    return [point for point in points if point["owner"] == owner and point["failed"] is None]


def psnr_of(point: Point) -> float:
    """The mean PSNR in decibels over the pictures that differ from the original's; infinite when none does."""
    found = mean(_differing(point))
    return math.inf if found is None else found


def psnr_interval(point: Point) -> list[float] | None:
    """The 95 % bootstrap interval of `psnr_of`."""
    return mean_interval(_differing(point))


def clip_of(point: Point) -> float:
    """The mean change of the CLIP score (0..100)."""
    found = mean(point["clip_change"])
    return math.nan if found is None else found


def clip_interval(point: Point) -> list[float] | None:
    return mean_interval(point["clip_change"])


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points no other point beats, from small to large: each is better than every smaller one."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point["total_bytes"], -psnr_of(point))):
        if not best or psnr_of(point) > psnr_of(best[-1]):
            best.append(point)
    return best


def above_frontier(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The peers' points for which no point of ours has at most their bytes and at least their PSNR.

    With each: our best point of at most its bytes (None when none is as small), how many decibels that one is behind,
    and the 95 % interval of this difference, paired by prompt. An interval with 0 in it is a tie.
    """
    own = drawn(points, OURS)
    listed = []
    for peer in sorted(drawn(points, PEERS), key=lambda point: point["total_bytes"]):
        small = [point for point in own if point["total_bytes"] <= peer["total_bytes"]]
        best = max(small, key=psnr_of, default=None)
        if best is not None and psnr_of(best) >= psnr_of(peer):
            continue
        behind = None if best is None else paired_difference(peer, best)
        listed.append({"peer": peer["key"], "ours": None if best is None else best["key"], "behind_db": behind})
    return listed


def paired_difference(first: Point, second: Point) -> dict[str, Any]:
    """Mean of PSNR(first) - PSNR(second) in decibels over the prompts where both differ from the original."""
    pairs = zip(first["psnr_db"], second["psnr_db"], strict=True)
    values = [one - other for one, other in pairs if one is not None and other is not None]
    return {"mean": mean(values), "interval_95": mean_interval(values)}


def _differing(point: Point) -> list[float]:
    return [value for value in point["psnr_db"] if value is not None]
