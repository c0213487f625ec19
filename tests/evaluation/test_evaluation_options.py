"""Options that `evaluate` and `run` share."""

from __future__ import annotations

import inspect

import pytest

from sdcompress.cli.evaluation_options import make_settings
from sdcompress.errors import UserError
from sdcompress.evaluation.settings import EvaluationSettings, choose_some


def test_defaults_are_those_of_python() -> None:
    assert make_settings() == EvaluationSettings()
    taken = {"prompts", "prompt_count", "latency_repeats", "component_metrics_count"}  # renamed, or not an option
    assert len(inspect.signature(make_settings).parameters) >= len(set(EvaluationSettings.model_fields) - taken)


def test_sources_of_noise() -> None:
    assert make_settings(noise_floor="none").noise_floor == ()
    assert make_settings(noise_floor="batch, seed,batch").noise_floor == ("batch", "seed")
    with pytest.raises(UserError, match="no source 'bfloat15'; did you mean bfloat16"):
        make_settings(noise_floor="seed,bfloat15")


def test_some_are_spread_over_all() -> None:
    drawings = [{"index": index} for index in range(10)]
    assert [each["index"] for each in choose_some(drawings, 3)] == [0, 3, 6]
    assert choose_some(drawings, 99) == drawings
