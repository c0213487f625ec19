import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sdcompress
from sdcompress.cli.main import app
from sdcompress.errors import SdcompressError, UserError
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import load_recipe
from sdcompress.searching.allocate import allocate, predict
from sdcompress.searching.result import SearchResult, read_result
from sdcompress.sources.opening import open_source

SPACE = "formats: [uint2/64+scale8, uint4/64+scale8, uint8/64+scale8, float16]\nrounding: search\n"


@pytest.fixture(scope="module")
def searched(nano_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchResult]:
    folder = tmp_path_factory.mktemp("search")
    (folder / "space.yaml").write_text(SPACE)
    (folder / "prompts.txt").write_text("a red house\na blue tree\na green car\na dark road\n")
    result = sdcompress.search(
        nano_folder, folder / "out", size="0.2x", space=folder / "space.yaml", prompts=folder / "prompts.txt", steps=2,
        finalists=1, progress=None, device="cpu",
    )  # fmt: skip
    return folder / "out", result


def test_the_recipe_keeps_within_the_size(searched: tuple[Path, SearchResult], nano_folder: Path) -> None:
    out, result = searched
    source = open_source(str(nano_folder))
    plan = make_plan(load_recipe(out / "recipe.yaml"), source)
    planned = sum(spec.weights_bytes for spec in plan.components_after.values())
    assert planned == result.size_bytes <= 0.2 * source.weights_bytes
    assert result.met and result.finalists[0].chosen and result.finalists[0].psnr_db is not None
    assert {path.name for path in out.iterdir()} >= {"recipe.yaml", "search.json", "search.html", "search.png"}
    assert sdcompress.verify(out / "finalists" / "predicted" / "artifact", progress=None)


def test_predictions_rise_as_bytes_fall(searched: tuple[Path, SearchResult]) -> None:
    _, result = searched
    damages = [damage for _, damage in result.curve]
    assert damages == sorted(damages, reverse=True)
    assert {trial.name for trial in result.trials} >= {"target", "vae alone", "text_encoder alone"}
    assert read_result(searched[0]) == result


def test_another_target_is_solved_without_drawing(
    searched: tuple[Path, SearchResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdcompress.backends.torch import trajectories

    monkeypatch.setattr(trajectories, "open_without_models", None)  # whatever draws needs it
    out, first = searched
    other = sdcompress.search(out=tmp_path, earlier=out, size="0.25x", finalists=0, progress=None)
    assert first.size_bytes < other.size_bytes <= 0.25 * other.original_bytes
    assert other.predicted < first.predicted
    assert other.scores == first.scores
    assert other.evaluation == first.evaluation and len(first.evaluation["prompts"]["prompts"]) == 2


def test_a_quality_alone_makes_the_size_least(searched: tuple[Path, SearchResult]) -> None:
    _, result = searched
    wanted = predict(result.scores, result.allocation)
    found = allocate(result.scores, damage=wanted)
    assert found.damage <= wanted and found.size_bytes <= result.size_bytes


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, UserError),
        ({"size": "0.01x"}, UserError),
        ({"size": "1.5x"}, UserError),
        ({"size": "many"}, UserError),
        ({"quality": "clip_score>=3"}, UserError),
        ({"size": "0.3x", "space": "missing.yaml"}, UserError),
        ({"size": "0.3x", "earlier": "missing"}, UserError),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: dict[str, str], error: type[SdcompressError], nano_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(error) as raised:
        sdcompress.search(nano_folder, tmp_path / "out", progress=None, **options)  # type: ignore[arg-type]
    assert raised.value.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["[]", "formats: []", "formats: [uint9]", "formats: [nf4]", "unknown: 1", "{"])
def test_a_broken_space_is_refused(text: str, nano_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(UserError, match=r"space\.yaml"):
        sdcompress.search(nano_folder, tmp_path / "out", size="0.3x", space=tmp_path / "space.yaml", progress=None)


def test_the_command(searched: tuple[Path, SearchResult], tmp_path: Path) -> None:
    out, _ = searched
    arguments = ["search", "--from", str(out), "--finalists", "0", "--out", str(tmp_path / "new")]
    found = CliRunner().invoke(app, [*arguments, "--size", "0.22x"])
    assert found.exit_code == 0 and found.stdout.strip() == str(tmp_path / "new" / "recipe.yaml")
    again = CliRunner().invoke(app, [*arguments, "--size", "0.22x", "--json"])
    assert isinstance(again.exception, SdcompressError)  # the folder holds a search already
    as_json = CliRunner().invoke(app, [*arguments, "--size", "0.22x", "--json", "--force"])
    assert json.loads(as_json.stdout)["limits"] == {"size": "0.22x"}


def test_weights_alone(nano_folder: Path, tmp_path: Path) -> None:
    """Where nothing can be drawn, errors of weights serve, when that is asked for."""
    found = sdcompress.search(
        nano_folder, tmp_path, size="0.2x", sensitivity="weights", finalists=0, progress=None, device="cpu"
    )
    assert found.scores.sensitivity == "weights" and found.size_bytes <= 0.2 * found.original_bytes
    assert os.path.exists(tmp_path / "recipe.yaml")


def test_finalists_of_tiny_sd_are_drawn_with_its_own_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a folder's path instead of its name, general prompts would be drawn, which tiny-sd was not trained on."""
    from sdcompress.api import evaluation

    asked: list[str] = []

    def evaluate(original: str, *_: object, **__: object) -> None:
        asked.append(str(original))
        raise UserError("stop here")

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    (tmp_path / "space.yaml").write_text("formats: [int8, float16]\nrounding: nearest\n")
    with pytest.raises(UserError, match="stop here"):
        sdcompress.search(
            "tiny-sd", tmp_path / "out", size="0.6x", space=tmp_path / "space.yaml", sensitivity="weights",
            finalists=1, progress=None,
        )  # fmt: skip
    assert asked == ["tiny-sd"]
