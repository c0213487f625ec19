"""The judge of saved pictures: CLIP score of each, similarity of pairs and of sets. Runs inside a worker process."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SIDES = ("original", "compressed")
MOST_KEPT = 20_000  # embeddings, 60 MB of 768 floats, and as many features, 160 MB of 2048


class Judge:
    """Metrics, opened once, scoring one pair of pictures for each request."""

    def open(self, scorer: str | None) -> dict[str, Any]:
        """Opens the CLIP model in the folder `scorer` (None: no CLIP scores); tells what cannot be measured."""
        from sdcompress.evaluation.metrics import fid, lpips
        from sdcompress.evaluation.metrics.clip_score import ClipScorer

        self._clip = None if scorer is None else ClipScorer(Path(scorer))
        self._embeddings: dict[str, np.ndarray] = {}
        self._features: dict[str, np.ndarray] = {}
        reasons = {"lpips": lpips.why_not(), "fid": fid.why_not()}
        self._lpips = None if reasons["lpips"] else lpips.Lpips()
        self._inception = None if reasons["fid"] else fid.Inception()
        return {"not_measured": {name: reason for name, reason in reasons.items() if reason}}

    def score(self, original: str, compressed: str, prompt: str) -> dict[str, Any]:
        """The figures of two picture files; the PSNR of identical pictures, which is infinite, is None."""
        from sdcompress.evaluation.metrics.clip_image import clip_image
        from sdcompress.evaluation.metrics.ms_ssim import ms_ssim
        from sdcompress.evaluation.metrics.psnr import psnr_db
        from sdcompress.evaluation.metrics.ssim import ssim

        pictures = [_read(file) for file in (original, compressed)]
        scores: tuple[float | None, ...] = (None, None)
        metrics: dict[str, float | None] = {"clip_image": None, "ms_ssim": None, "lpips": None}
        if self._clip:
            embeddings = self._clip.embed(pictures)
            for file, embedding in zip((original, compressed), embeddings, strict=True):
                _keep(self._embeddings, file, embedding)
            scores = self._clip.score_embeddings(embeddings, prompt)
            metrics["clip_image"] = clip_image(*embeddings)
        comparable = pictures[0].shape == pictures[1].shape
        psnr = psnr_db(*pictures) if comparable else None
        if comparable:
            metrics["ms_ssim"] = ms_ssim(*pictures)
            metrics["lpips"] = self._lpips(*pictures) if self._lpips else None
        return {
            "clip_score": dict(zip(SIDES, scores, strict=True)),
            "identical": psnr == math.inf,
            "psnr_db": None if psnr == math.inf else psnr,
            "ssim": ssim(*pictures) if comparable else None,
            "metrics": metrics,
        }

    def score_sets(self, original: list[str], compressed: list[str]) -> dict[str, Any]:
        """The figures of two sets of picture files; None for what is not measured here."""
        from sdcompress.evaluation.metrics.cmmd import cmmd
        from sdcompress.evaluation.metrics.fid import fid

        figures: dict[str, float | None] = {"cmmd": None, "fid": None}
        if self._clip is not None:
            clip = self._clip
            figures["cmmd"] = cmmd(
                *_of_sets(self._embeddings, lambda picture: clip.embed([picture])[0], original, compressed)
            )
        if self._inception is not None:
            figures["fid"] = fid(*_of_sets(self._features, self._inception.features, original, compressed))
        return figures


def _of_sets(
    kept: dict[str, np.ndarray], make: Callable[[np.ndarray], np.ndarray], *sets: list[str]
) -> list[np.ndarray]:
    """What `make` gives for each set's pictures [pictures, dimensions], of which `kept` has some and gets the rest."""
    import numpy as np

    stacked = []
    for files in sets:
        rows = []
        for file in files:
            if file not in kept:
                _keep(kept, file, make(_read(file)))
            rows.append(kept[file])
        stacked.append(np.stack(rows))
    return stacked


def _keep(kept: dict[str, np.ndarray], file: str, row: np.ndarray) -> None:
    if len(kept) >= MOST_KEPT:
        kept.pop(next(iter(kept)))
    kept[file] = row


def _read(file: str) -> np.ndarray:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(file).convert("RGB"))
