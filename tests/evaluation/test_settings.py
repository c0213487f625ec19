"""The settings of an evaluation, and the options of the command line that are made from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from sdcompress.calibration.prompts import PromptSet
from sdcompress.cli.evaluation_options import with_evaluation_options
from sdcompress.errors import UserError
from sdcompress.evaluation.samples import Drawing
from sdcompress.evaluation.settings import EvaluationSettings, choose_some


def _settings(*arguments: str) -> EvaluationSettings:
    """The settings that a command with the evaluation's options is given."""
    app, given = typer.Typer(), []

    def command(settings: EvaluationSettings) -> None:
        given.append(settings)

    app.command()(with_evaluation_options(command))
    answer = CliRunner().invoke(app, arguments)
    if answer.exit_code:
        raise answer.exception or AssertionError(answer.output)
    return given[0]


def test_defaults_are_those_of_python() -> None:
    assert _settings() == EvaluationSettings()
    assert all(field.description for field in EvaluationSettings.model_fields.values())


def test_every_sort_of_option(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    given = _settings(
        "--prompts", str(tmp_path / "prompts.txt"), "--count", "2", "--guidance", "2.5", "--image", "x.png",
        "--dtype", "float16", "--no-clip", "--no-component-metrics", "--attribute", "--low-memory",
        "--noise-floor", "batch, seed,batch",
    )  # fmt: skip
    assert given == EvaluationSettings(
        prompts=PromptSet("prompts.txt", ("a cat", "a dog"), 2), prompt_count=2, guidance_scale=2.5,
        image=Path("x.png"), dtype="float16", use_clip=False, component_metrics=False, attribute=True, low_memory=True,
        noise_floor=("batch", "seed"),
    )  # fmt: skip
    assert _settings("--noise-floor", "none").noise_floor == ()


@pytest.mark.parametrize(
    ("arguments", "option"),
    [(("--noise-floor", "seed,bfloat15"), "--noise-floor seed,bfloat15"), (("--dtype", "int8"), "--dtype int8"),
     (("--height", "100"), "--height 100"), (("--strength", "0"), "--strength 0")],
)  # fmt: skip
def test_what_a_field_does_not_allow_is_said_of_its_option(arguments: tuple[str, str], option: str) -> None:
    with pytest.raises(UserError, match=option):
        _settings(*arguments)


def test_some_are_spread_over_all() -> None:
    drawings = [Drawing(index=index, prompt="", seed=index) for index in range(10)]
    assert [each.index for each in choose_some(drawings, 3)] == [0, 3, 6]
    assert choose_some(drawings, 99) == drawings
