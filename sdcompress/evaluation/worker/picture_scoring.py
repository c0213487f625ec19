"""Scores of saved pictures: CLIP score of each, similarity of pairs and of sets. Runs inside a worker process."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdcompress.evaluation.metrics.registry import pair_metrics
from sdcompress.evaluation.samples import SIDES, PairScores, SetScores
from sdcompress.evaluation.worker.requests import OpenedMetrics, OpenMetrics, Score, ScoreSets

if TYPE_CHECKING:
    import numpy as np

MOST_KEPT = 20_000  # embeddings, 60 MB of 768 floats, and as many features, 160 MB of 2048


class PictureScorer:
    """The metrics' networks, opened once, and the vectors they computed of picture files."""

    def open(self, request: OpenMetrics) -> OpenedMetrics:
        """Open the CLIP model, if one is named, and the networks whose weights are on this disk."""
        from sdcompress.evaluation.metrics import fid
        from sdcompress.evaluation.metrics.clip_score import ClipScorer

        self._clip = None if request.scorer is None else ClipScorer(Path(request.scorer))
        reasons = {"fid": fid.why_not(), **{name: metric.why_not() for name, metric in pair_metrics().items()}}
        self._measures = {name: metric.open() for name, metric in pair_metrics().items() if reasons[name] is None}
        self._inception = None if reasons["fid"] else fid.Inception()
        self._embeddings: dict[str, np.ndarray] = {}  # by file
        self._features: dict[str, np.ndarray] = {}
        return OpenedMetrics(not_measured={name: reason for name, reason in reasons.items() if reason})

    def score(self, request: Score) -> PairScores:
        """Compare two picture files."""
        from sdcompress.evaluation.metrics.psnr import psnr_db
        from sdcompress.evaluation.metrics.ssim import ssim

        files = request.original, request.compressed
        scores: tuple[float | None, ...] = (None, None)
        original, compressed = (_read(file) for file in files)
        comparable = original.shape == compressed.shape
        given = {"pictures": (original, compressed)} if comparable else {}
        if self._clip is not None:
            embeddings = _vectors(self._embeddings, self._clip.embed, files)
            given["embeddings"] = (embeddings[0], embeddings[1])
            scores = self._clip.score_embeddings(embeddings, request.prompt)
        metrics = dict.fromkeys(pair_metrics())
        for name, measure in self._measures.items():
            pair = given.get(pair_metrics()[name].of)
            metrics[name] = None if pair is None else measure(*pair)
        psnr = psnr_db(original, compressed) if comparable else None
        return PairScores(
            clip_score=dict(zip(SIDES, scores, strict=True)),
            identical=psnr == math.inf,
            psnr_db=None if psnr == math.inf else psnr,
            ssim=ssim(original, compressed) if comparable else None,
            metrics=metrics,
        )

    def score_sets(self, request: ScoreSets) -> SetScores:
        """Compare two sets of picture files."""
        from sdcompress.evaluation.metrics.cmmd import cmmd
        from sdcompress.evaluation.metrics.fid import fid

        sets = request.original, request.compressed
        clip, inception = self._clip, self._inception
        return SetScores(
            cmmd=None if clip is None else cmmd(*(_vectors(self._embeddings, clip.embed, each) for each in sets)),
            fid=None
            if inception is None
            else fid(*(_vectors(self._features, inception.features, each) for each in sets)),
        )


def _vectors(
    kept: dict[str, np.ndarray], compute: Callable[[Sequence[np.ndarray]], np.ndarray], files: Sequence[str]
) -> np.ndarray:
    """Return `compute` of each picture file [pictures, dimensions]; `kept` has some rows already and gets the rest."""
    import numpy as np

    rows = []
    for file in files:
        if file not in kept:
            if len(kept) >= MOST_KEPT:
                kept.pop(next(iter(kept)))
            kept[file] = compute([_read(file)])[0]
        rows.append(kept[file])
    return np.stack(rows)


def _read(file: str) -> np.ndarray:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(file).convert("RGB"))
