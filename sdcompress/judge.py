"""The judge of saved pictures: CLIP score of each, PSNR and SSIM of each pair. Runs inside a worker process."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

SIDES = ("original", "compressed")


class Judge:
    """Metrics, opened once, scoring one pair of pictures for each request."""

    def open(self, scorer: str | None) -> dict[str, Any]:
        """Opens the CLIP model in the folder `scorer` (None: no CLIP scores)."""
        from sdcompress.metrics.clip_score import ClipScorer

        self._clip = None if scorer is None else ClipScorer(Path(scorer))
        return {}

    def score(self, original: str, compressed: str, prompt: str) -> dict[str, Any]:
        """The figures of two picture files; the PSNR of identical pictures, which is infinite, is None."""
        import numpy as np
        from PIL import Image

        from sdcompress.metrics.psnr import psnr_db
        from sdcompress.metrics.ssim import ssim

        pictures = [np.asarray(Image.open(file).convert("RGB")) for file in (original, compressed)]
        scores = self._clip.scores(pictures, prompt) if self._clip else (None, None)
        comparable = pictures[0].shape == pictures[1].shape
        psnr = psnr_db(*pictures) if comparable else None
        return {
            "clip_score": dict(zip(SIDES, scores, strict=True)),
            "identical": psnr == math.inf,
            "psnr_db": None if psnr == math.inf else psnr,
            "ssim": ssim(*pictures) if comparable else None,
        }
