"""The CLIP score against torchmetrics' on the same pictures."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sdcompress.errors import EvaluationError
from sdcompress.evaluation.metrics.clip_score import ClipScorer
from sdcompress.evaluation.metrics.scorer import TINY_SD_SCORER

PROMPTS = ("a fluent 3d emoji of red apple", "two rockets, pink background", "x", "")


def _pictures() -> np.ndarray:
    generator = np.random.default_rng(3)
    coarse = generator.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)  # [3, 64, 64, 3], blocks rather than noise


@pytest.fixture(scope="module")
def scorer() -> Iterator[ClipScorer]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is tiny, and threads wait for one another on a busy machine
    yield ClipScorer(TINY_SD_SCORER)
    torch.set_num_threads(threads)


def test_equals_torchmetrics(scorer: ClipScorer) -> None:
    from torchmetrics.functional.multimodal import clip_score
    from transformers import CLIPProcessor

    def feature(name: str):  # torchmetrics expects tensors, transformers 5 hands back an object
        def call(*args: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                output = getattr(scorer._model, name)(*args)
            return getattr(output, "pooler_output", output)

        return call

    model = SimpleNamespace(
        to=lambda device: model,
        config=scorer._model.config,
        get_image_features=feature("get_image_features"),
        get_text_features=feature("get_text_features"),
    )
    processor = CLIPProcessor(image_processor=scorer._processor, tokenizer=scorer._tokenizer)
    for prompt in PROMPTS:
        ours = scorer.scores(list(_pictures()), prompt)
        for picture, score in zip(_pictures(), ours, strict=True):
            theirs = clip_score(torch.from_numpy(picture).permute(2, 0, 1), prompt, lambda: (model, processor))
            assert score == pytest.approx(float(theirs), abs=1e-4)  # the rounding of float32, times 100


def test_each_sample_is_floored_at_zero(scorer: ClipScorer) -> None:
    values = [score for prompt in PROMPTS for score in scorer.scores(list(_pictures()), prompt)]
    assert all(0 <= value <= 100 for value in values)


def test_a_sample_does_not_depend_on_its_neighbours(scorer: ClipScorer) -> None:
    pictures = list(_pictures())
    together = scorer.scores(pictures, PROMPTS[0])
    alone = [scorer.scores([picture], PROMPTS[0])[0] for picture in pictures]
    assert together == pytest.approx(alone, abs=1e-4)


def test_a_long_prompt_is_cut(scorer: ClipScorer) -> None:
    assert len(scorer.scores(list(_pictures()), "red apple " * 200)) == 3


def test_a_folder_that_is_no_clip(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(EvaluationError, match="cannot be opened as a CLIP model"):
        ClipScorer(tmp_path)
