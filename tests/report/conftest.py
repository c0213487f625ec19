"""Reports made of invented samples, for the tests of a report's views."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdcompress.evaluation.metrics.scorer import Scorer
from sdcompress.evaluation.result import ComponentFacts, ComponentSwap, Evaluation, ModelFacts, StepSwap
from sdcompress.evaluation.samples import SIDES, Drawing, parse_record
from sdcompress.evaluation.stopping import Stopping
from sdcompress.report import Report, build_report

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
SWAPS = (
    ComponentSwap(
        "unet", [{"prune": {}}, {"recover": {}}, {"cast": {}}], 20_000_000, 20_000_000,
        (
            StepSwap("prune", 1, "step-unet-1", 36_000_000, 4_000_000, note="weights alone"),
            StepSwap("recover", 2, "step-unet-2", 36_000_000, 0, not_measured="it would have to be trained again"),
            StepSwap("cast", 3, "swap-unet", 20_000_000, 16_000_000),
        ),
    ),
    ComponentSwap("vae", [], 2_000_000, 2_000_000, steps_not_measured="its steps are not known"),
)  # fmt: skip


def _pipelines() -> Iterator[dict[str, Any]]:
    for side, load_s in (("original", 1.0), ("compressed", 2.0)):
        yield {
            "kind": "process", "side": side, "load_s": load_s, "resident_after_imports_bytes": 300_000_000,
            "peak_memory_bytes": 350_000_000, "resident_weights_bytes": {"unet": 80_000_000, "vae": 8_000_000},
            "pipeline_class": "StableDiffusionPipeline", "device": "cpu", "device_name": None, "dtype": "float32",
            "threads": 2, "defaults": {"num_inference_steps": 50, "guidance_scale": 7.5},
        }  # fmt: skip


def _picture(index: int, factor: float, **values: Any) -> dict[str, Any]:
    return {
        "index": index, "latency_s": factor * (1 + index / 10), "energy_j": None,
        "component_latency_s": {"unet": factor * 0.8, "vae": 0.1}, "latents_sha256": f"{index:064x}",
        "blocked": False, "flat": False, "not_finite": False, "height": 64, "width": 64,
        "peak_memory_bytes": 400_000_000, "peak_device_memory_bytes": None, **values,
    }  # fmt: skip


def _score(index: int, scorer: str | None, drift: float, psnr_db: float | None, ssim: float) -> dict[str, Any]:
    scores = (None, None) if scorer is None else (30.0 + index, 30.0 + index + drift + 0.1 * (-1) ** index)
    return {
        "index": index, "scorer": scorer, "clip_score": dict(zip(SIDES, scores, strict=True)),
        "identical": psnr_db is None, "psnr_db": psnr_db, "ssim": ssim,
        "metrics": {"clip_image": 99.0 + index / 100, "ms_ssim": None, "lpips": None},
    }  # fmt: skip


def _variants(count: int, scorer: str | None) -> Iterator[dict[str, Any]]:
    """The noise floor, and what attribution draws; the swapped VAE draws the original's pictures."""
    for label, drift, psnr_db in (
        ("floor-seed", 0.3, 15.0),
        ("floor-bfloat16", 0.0, 50.0),
        ("step-unet-1", -0.1, 45.0),
        ("swap-unet", -0.4, 41.0),
        ("swap-vae", 0.0, None),
    ):
        for i in range(count):
            timed = {} if label.startswith("floor") else {"original_latency_s": 1.0}
            own = {"seed": 100 + i} if label == "floor-seed" else {}
            yield {"kind": "variant", "variant": label, **_picture(i, 0.9, **timed, **own)}
            psnr = None if psnr_db is None else psnr_db + i / 2
            yield {"kind": "variant_score", "variant": label, **_score(i, scorer, drift, psnr, 0.8 + i / 100)}
    sets = {"kind": "set_score", "scorer": scorer, "count": count, "cmmd": 0.25, "fid": 12.5}
    yield sets | {"label": "compressed", "over": "all"}
    yield sets | {"label": "compressed", "over": "floor"}
    yield sets | {"label": "floor-seed", "over": "floor", "cmmd": 0.5}
    alone = {
        "unet": {"noise_sqnr_db": {"timesteps": [999.0, 99.0], "values": [30.0, 20.0], "mean": 25.0, "identical": 0}},
        "vae": {"decode_psnr_db": {"mean": 31.25, "min": 30.0, "values": [30.0, 32.5], "identical": 0}},
        "text_encoder": {"cosine": {"mean": 0.9995, "min": 0.98, "values": [0.9995]}},
        "safety_checker": {"agreement": 0.5, "pictures": 4, "flagged_original": 0, "flagged_compressed": 2},
    }
    macs = {"unet": 1_000_000, "vae": 500_000}
    counted = dict.fromkeys(SIDES, macs)
    yield {"kind": "components", "pictures": min(4, count), "macs": counted, "component_metrics": alone}


def _make_evaluation(
    count: int = 4,
    drift: float = -0.5,
    identical: bool = False,
    blocked: tuple[int, ...] = (),
    scored: bool = True,
    whole: bool = False,
    looks: tuple[int, ...] = (4,),
) -> Evaluation:
    """Return an evaluation of `count` pairs whose CLIP scores differ by `drift` plus an alternating +-0.1.

    whole: with all that may be measured: noise floor, attribution, distances of sets, component metrics, gates.
    looks: prompts at each planned look; the evaluation stopped at the first.
    """
    scorer = "a judge" if scored else None
    records = list(_pipelines())
    for i in range(count):
        for side, factor in (("original", 1.0), ("compressed", 0.5)):
            stopped = side == "compressed" and i in blocked
            records.append({"kind": "picture", "side": side, "repeat": 0, **_picture(i, factor, blocked=stopped)})
        psnr_db, ssim = (None, 1.0) if identical else (40.0 + i, 0.9 + i / 100)
        records.append({"kind": "score", **_score(i, scorer, drift, psnr_db, ssim)})
    parts = {"unet": ComponentFacts(20_000_000, 40_000_000, 16.0), "vae": ComponentFacts(2_000_000, 4_000_000, 16.0)}
    models = {
        "original": ModelFacts("tiny", "P", 22_000_000, 44_100_000, 44_000_000, parts, []),
        "compressed": ModelFacts("tiny-int8", "P", 22_000_000, 22_100_000, 22_000_000, parts, LAYERS),
    }
    settings = {"prompt_set": "general", "num_inference_steps": None, "guidance_scale": 3.0}
    if whole:
        records += _variants(count, scorer)
        settings |= {"noise_floor": ["seed", "bfloat16"], "component_metrics": True, "component_metrics_count": 4}
    return Evaluation(
        folder=Path(),
        command="sdcompress run tiny-sd --recipe 'my recipe.yaml'",
        environment={"python": "3.11", "platform": "L", "cpu": "A CPU", "cores": 2, "memory_bytes": 1, "versions": {}},
        settings=settings,
        scorer=Scorer("a judge", Path("/judge")) if scored else None,
        models=models,
        drawings=tuple(Drawing(index=i, prompt=f"prompt number {i} | of *many*", seed=40 + i) for i in range(count)),
        records=tuple(map(parse_record, records)),
        floor_not_measured={"batch": "not asked for"} if whole else {},
        swaps=SWAPS if whole else None,
        gates=("psnr_db>=30", "size_ratio<0.1") if whole else (),
        made_with={"recipe": {"description": "eight bits"}, "recovery": RECOVERY} if whole else {},
        stopping=Stopping(looks, looks[0], "the interval is narrow enough"),
    )


RECOVERY = {"unet": {"loss": {"steps_each": 4, "means": [2.0, 1.0, 0.5]}}}


def _alter(report: Report, changes: dict[str, Any]) -> Report:
    """Return the report with other values at dotted paths, such as `samples.0.prompt`."""
    data = report.to_dict()
    for path, value in changes.items():
        *parents, last = path.split(".")
        place: Any = data
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[int(last) if isinstance(place, list) else last] = value
    return Report.model_validate(data)


def _save_pictures(report: Report, folder: Path, size: tuple[int, int] = (64, 64), cells: int = 2) -> None:
    """Save a picture of cells x cells random colours for each sample of `report`."""
    generator = np.random.default_rng(0)
    for sample in report.samples:
        for side in SIDES:
            file = folder / sample.side(side).picture
            file.parent.mkdir(parents=True, exist_ok=True)
            colour = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
            Image.fromarray(colour).resize(size, Image.Resampling.NEAREST).save(file, compress_level=0)


@pytest.fixture
def make_report() -> Callable[..., Report]:
    return lambda **arguments: build_report(_make_evaluation(**arguments))


@pytest.fixture
def alter() -> Callable[..., Report]:
    return _alter


@pytest.fixture
def save_pictures() -> Callable[..., None]:
    return _save_pictures
