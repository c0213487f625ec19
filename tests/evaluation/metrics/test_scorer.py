"""Which CLIP judges, and what is said when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdcompress.errors import EvaluationError
from sdcompress.evaluation.metrics.scorer import DEFAULT_CLIP, TINY_SD_SCORER, find_scorer


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def test_tiny_sd_has_its_own() -> None:
    scorer = find_scorer(None, tiny_sd=True)
    assert (scorer.name, scorer.path) == ("tiny-sd's own CLIP", TINY_SD_SCORER)


def test_other_pipelines_need_one_and_the_error_says_how_to_get_it() -> None:
    with pytest.raises(EvaluationError) as caught:
        find_scorer(None, tiny_sd=False)
    assert caught.value.exit_code == 2
    for words in (DEFAULT_CLIP, "hf download", "--clip PATH", "--no-clip"):
        assert words in str(caught.value)


def test_the_default_comes_from_the_cache(empty_cache: Path) -> None:
    model = empty_cache / "models--openai--clip-vit-large-patch14"
    snapshot = model / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("a" * 40)
    with pytest.raises(EvaluationError, match="only partly"):
        find_scorer(None, tiny_sd=False)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    scorer = find_scorer(None, tiny_sd=False)
    assert (scorer.name, scorer.path) == (DEFAULT_CLIP, snapshot)


def test_a_folder_is_taken_and_named(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    assert find_scorer(str(tmp_path), tiny_sd=True).name == str(tmp_path)


@pytest.mark.parametrize("made", ["nothing", "config"])
def test_a_folder_that_is_no_model(tmp_path: Path, made: str) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    if made == "config":
        (folder / "config.json").write_text("{}")
    with pytest.raises(EvaluationError, match="--clip"):
        find_scorer(str(folder), tiny_sd=False)


def test_neither_folder_nor_hub_id() -> None:
    with pytest.raises(EvaluationError, match="neither a folder nor a hub id"):
        find_scorer("/no/such/folder/at all", tiny_sd=False)
