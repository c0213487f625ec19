"""Metrics of single components against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sdcompress.evaluation.metrics.components.decode_psnr import decode_psnr_db
from sdcompress.evaluation.metrics.components.noise_sqnr import noise_sqnr_db
from sdcompress.evaluation.metrics.components.safety_agreement import safety_agreement
from sdcompress.evaluation.metrics.components.text_cosine import text_cosine


def test_text_cosine_is_over_tokens() -> None:
    original = np.array([[[1.0, 0.0], [0.0, 2.0]]])
    turned = np.array([[[1.0, 1.0], [0.0, 5.0]]])  # 45 degrees, 0 degrees
    found = text_cosine([(original, original), (original, turned)])
    assert found["values"] == pytest.approx([1.0, (math.sqrt(0.5) + 1) / 2])
    assert found["min"] == found["values"][1] and found["mean"] == pytest.approx(sum(found["values"]) / 2)
    assert text_cosine([(original, original * 0)])["min"] == 0.0


def test_noise_sqnr_pools_the_pictures_of_a_timestep() -> None:
    ones = np.ones((1, 4))
    outputs = [(ones, ones), (3 * ones, 3 * ones), (ones, ones + 0.1), (3 * ones, 3 * ones + 0.1)]
    found = noise_sqnr_db(outputs, [500.0, 500.0, 900.0, 900.0])
    assert found["timesteps"] == [900.0, 500.0]
    assert found["values"] == [pytest.approx(10 * math.log10((4 + 36) / (8 * 0.01))), None]
    assert found["mean"] == found["values"][0] and found["identical"] == 1
    assert noise_sqnr_db([(ones, ones * np.nan)], [1.0])["values"] == [0.0]


def test_decode_psnr_is_of_eight_bits() -> None:
    original = np.full((1, 3, 2, 2), -1 + 2 * 100 / 255)  # the value 100 of 255
    found = decode_psnr_db([(original, original + 1e-4), (original, original + 2 / 255)])
    assert found["values"][0] is None and found["identical"] == 1
    assert found["values"][1] == pytest.approx(20 * math.log10(255))  # all values one step off
    assert found["mean"] == found["min"] == found["values"][1]


def test_safety_agreement_counts_what_each_flags() -> None:
    flags = [
        (np.array([True]), np.array([True])),
        (np.array([False]), np.array([True])),
        (np.array([0]), np.array([0])),
    ]
    found = safety_agreement(flags)
    assert found == {"agreement": pytest.approx(2 / 3), "pictures": 3, "flagged_original": 1, "flagged_compressed": 2}
