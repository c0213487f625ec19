"""The judge of saved pictures: CLIP score of each, similarity of each pair. Runs inside a worker process."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SIDES = ("original", "compressed")
MOST_KEPT = 20_000  # embeddings, 60 MB of 768 floats


class Judge:
    """Metrics, opened once, scoring one pair of pictures for each request."""

    def open(self, scorer: str | None) -> dict[str, Any]:
        """Opens the CLIP model in the folder `scorer` (None: no CLIP scores); tells what cannot be measured."""
        from sdcompress.metrics import lpips
        from sdcompress.metrics.clip_score import ClipScorer

        self._clip = None if scorer is None else ClipScorer(Path(scorer))
        self._embeddings: dict[str, np.ndarray] = {}
        why_no_lpips = lpips.why_not()
        self._lpips = None if why_no_lpips else lpips.Lpips()
        return {"not_measured": {"lpips": why_no_lpips} if why_no_lpips else {}}

    def score(self, original: str, compressed: str, prompt: str) -> dict[str, Any]:
        """The figures of two picture files; the PSNR of identical pictures, which is infinite, is None."""
        from sdcompress.metrics.clip_image import clip_image
        from sdcompress.metrics.ms_ssim import ms_ssim
        from sdcompress.metrics.psnr import psnr_db
        from sdcompress.metrics.ssim import ssim

        pictures = [_read(file) for file in (original, compressed)]
        scores: tuple[float | None, ...] = (None, None)
        metrics: dict[str, float | None] = {"clip_image": None, "ms_ssim": None, "lpips": None}
        if self._clip:
            embeddings = self._clip.embed(pictures)
            for file, embedding in zip((original, compressed), embeddings, strict=True):
                self._keep(file, embedding)
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
        """The figures of two sets of picture files."""
        import numpy as np

        from sdcompress.metrics.cmmd import cmmd

        first, second = (np.stack([self._embedding(file) for file in files]) for files in (original, compressed))
        return {"cmmd": cmmd(first, second)}

    def _embedding(self, file: str) -> np.ndarray:
        assert self._clip is not None
        if file not in self._embeddings:
            self._keep(file, self._clip.embed([_read(file)])[0])
        return self._embeddings[file]

    def _keep(self, file: str, embedding: np.ndarray) -> None:
        if len(self._embeddings) >= MOST_KEPT:
            self._embeddings.pop(next(iter(self._embeddings)))
        self._embeddings[file] = embedding


def _read(file: str) -> np.ndarray:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(file).convert("RGB"))
