"""Reports made of invented samples, for the tests of a report's faces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdcompress.report.build import build_report

ENVIRONMENT = {"python": "3.11", "platform": "Linux", "cpu": "A CPU", "cores": 2, "memory_bytes": 1, "versions": {}}

ROUNDED = {"kind": "conv3x3", "parameters": 9_000_000, "format": "uint4/64+scale8", "rounding": "gptq"}
LAYERS = [
    {"component": "unet", "layer": "a.conv1", **ROUNDED, "bits_per_weight": 4.25, "weight_sqnr_db": 21.5,
     "output_sqnr_db": 27.25},
    {"component": "unet", "layer": "a.conv2", **ROUNDED, "bits_per_weight": 4.75, "weight_sqnr_db": 20.5,
     "output_sqnr_db": 25.75},
    {"component": "unet", "layer": "conv_in", "kind": "conv3x3", "parameters": 2_000_000, "format": None,
     "reason": "sensitive layer conv_in (keep_sensitive)"},
    {"component": "vae", "layer": "conv", "kind": "conv1x1", "parameters": 2_000_000, "format": "int8",
     "rounding": "nearest", "bits_per_weight": 8.0, "weight_sqnr_db": 42.0},
]  # fmt: skip


def _make_report(
    count: int = 4,
    drift: float = -0.5,
    identical: bool = False,
    blocked: tuple[int, ...] = (),
    scored: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """A report of `count` pairs whose CLIP scores differ by `drift` plus an alternating +-0.1."""
    drawings = [{"index": i, "prompt": f"prompt number {i} | of *many*", "seed": 40 + i} for i in range(count)]
    records: list[dict[str, Any]] = []
    for side, load_s in (("original", 1.0), ("compressed", 2.0)):
        records.append(
            {
                "kind": "process",
                "side": side,
                "load_s": load_s,
                "resident_after_imports_bytes": 300_000_000,
                "peak_memory_bytes": 350_000_000,
                "resident_weights_bytes": {"unet": 80_000_000, "vae": 8_000_000},
                "pipeline_class": "StableDiffusionPipeline",
                "device": "cpu",
                "device_name": None,
                "dtype": "float32",
                "threads": 2,
                "defaults": {"num_inference_steps": 50, "guidance_scale": 7.5},
            }
        )
    for i in range(count):
        for side, factor in (("original", 1.0), ("compressed", 0.5)):
            records.append(
                {
                    "kind": "picture",
                    "side": side,
                    "index": i,
                    "repeat": 0,
                    "latency_s": factor * (1 + i / 10),
                    "component_latency_s": {"unet": factor * 0.8, "vae": 0.1},
                    "latents_sha256": f"{i:064x}",
                    "blocked": side == "compressed" and i in blocked,
                    "flat": False,
                    "not_finite": False,
                    "height": 64,
                    "width": 64,
                    "peak_memory_bytes": 400_000_000,
                    "peak_device_memory_bytes": None,
                }
            )
        records.append(
            {
                "kind": "score",
                "scorer": "a judge" if scored else None,
                "index": i,
                "clip_score": {
                    "original": 30.0 + i if scored else None,
                    "compressed": 30.0 + i + drift + 0.1 * (-1) ** i if scored else None,
                },
                "identical": identical,
                "psnr_db": None if identical else 40.0 + i,
                "ssim": 1.0 if identical else 0.9 + i / 100,
                "metrics": {"clip_image": 99.0 + i / 100, "ms_ssim": None, "lpips": None},
            }
        )
    model = {
        "name": "tiny",
        "pipeline_class": "StableDiffusionPipeline",
        "parameters": 22_000_000,
        "size_bytes": 44_100_000,
        "weights_bytes": 44_000_000,
        "components": {
            "unet": {"parameters": 20_000_000, "weights_bytes": 40_000_000, "bits_per_weight": 16.0},
            "vae": {"parameters": 2_000_000, "weights_bytes": 4_000_000, "bits_per_weight": 16.0},
        },
        "layers": [],
    }
    smaller = {**model, "layers": LAYERS, "name": "tiny-int8", "size_bytes": 22_100_000, "weights_bytes": 22_000_000}
    arguments: dict[str, Any] = {
        "environment": ENVIRONMENT,
        "settings": {"prompt_set": "general", "num_inference_steps": None, "guidance_scale": 3.0},
        "scorer": {"name": "a judge", "path": "/judge"} if scored else None,
        "models": {"original": model, "compressed": smaller},
        "drawings": drawings,
        "records": records,
    }
    return build_report(**{**arguments, **changes})


def _save_pictures(report: dict[str, Any], folder: Path, size: tuple[int, int] = (64, 64)) -> None:
    """Saves a picture for each sample of `report` where it says that one lies."""
    generator = np.random.default_rng(0)
    for sample in report["samples"]:
        for side in ("original", "compressed"):
            file = folder / sample[side]["picture"]
            file.parent.mkdir(parents=True, exist_ok=True)
            colour = generator.integers(0, 256, (2, 2, 3), dtype=np.uint8)
            Image.fromarray(colour).resize(size, Image.Resampling.NEAREST).save(file)


@pytest.fixture
def make_report() -> Callable[..., dict[str, Any]]:
    return _make_report


@pytest.fixture
def save_pictures() -> Callable[..., None]:
    return _save_pictures
