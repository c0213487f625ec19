"""bfloat16 where torch has no fast one: products in float32, rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from sdcompress.evaluation.samples import Drawing
from sdcompress.evaluation.worker import bfloat16
from sdcompress.evaluation.worker.pipeline import PipelineWorker
from sdcompress.evaluation.worker.requests import Draw, Open


def test_products_are_those_of_exact_arithmetic_rounded_once() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 64).bfloat16(), torch.randn(8, 64).bfloat16()
    picture, kernel = torch.randn(1, 4, 8, 8).bfloat16(), torch.randn(6, 4, 3, 3).bfloat16()
    with bfloat16.RoundedProducts():
        products = functional.linear(x, weight), x @ weight.T, functional.conv2d(picture, kernel, padding=1)
        attended = functional.scaled_dot_product_attention(x[None], x[None], x[None])
        alone = functional.linear(x.float(), weight.float())
    exact = x.double() @ weight.double().T
    convolved = functional.conv2d(picture.double(), kernel.double(), padding=1)
    for product, wanted in zip(products, (exact, exact, convolved), strict=True):
        # Half a step of 8 bits; a sum in float32 may fall on the other side of the middle.
        assert product.dtype == torch.bfloat16
        assert torch.allclose(product.double(), wanted, rtol=2**-8, atol=1e-6)
    assert attended.dtype == torch.bfloat16 and alone.dtype == torch.float32
    assert torch.equal(alone, functional.linear(x.float(), weight.float()))


def test_pictures_are_as_far_from_float32_as_with_torchs_own(
    nano_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = {}
    worker = PipelineWorker()
    drawing = Drawing(index=0, prompt="ab", seed=0)
    for name, dtype, fast in (("exact", "float32", True), ("own", "bfloat16", True), ("rounded", "bfloat16", False)):
        monkeypatch.setattr(bfloat16, "is_fast", lambda fast=fast: fast)
        worker.open(Open(path=str(nano_folder), device="cpu", dtype=dtype, threads=1, timed=False))
        worker.draw(Draw(drawings=[drawing], options={"num_inference_steps": 3}, picture=str(tmp_path / f"{name}.png")))
        pictures[name] = np.asarray(Image.open(tmp_path / f"{name}.png")).astype(float)
    own, rounded = (((pictures[name] - pictures["exact"]) ** 2).mean() for name in ("own", "rounded"))
    assert own > 0 and 0.25 < rounded / own < 4  # 6 dB either way: two draws of rounding noise on one picture
    assert (pictures["own"] != pictures["rounded"]).any()  # it was really computed in the other way
