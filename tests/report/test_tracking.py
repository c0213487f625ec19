"""Reports logged to trackers, through stand-ins for their clients that write down what they are told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from sdcompress.cli.evaluation import logged
from sdcompress.errors import UserError
from sdcompress.report import Report
from sdcompress.report.tracking import check_tracker, log_report

Make = Callable[..., Report]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> MagicMock:
    """A module of the tracker's name that records the calls made to it."""
    fake = MagicMock()
    fake.__spec__ = ModuleSpec(request.param, None)
    monkeypatch.setitem(sys.modules, request.param, fake)
    return fake


@pytest.mark.parametrize("client", ["mlflow"], indirect=True)
def test_mlflow_is_told_figures_settings_and_files(client: MagicMock, make_report: Make, tmp_path: Path) -> None:
    log_report("mlflow", make_report(), tmp_path)
    client.start_run.assert_called_once_with(run_name="tiny-int8 against tiny")
    (figures,) = client.log_metrics.call_args.args
    assert figures["compressed.size_bytes"] == 22_100_000 and figures["psnr_db"] == pytest.approx(41.5)
    assert all(isinstance(value, float) for value in figures.values())
    (settings,) = client.log_params.call_args.args
    assert settings["num_inference_steps"] == "50" and settings["compressed"] == "tiny-int8"
    files = [call.args[0] for call in client.log_artifact.call_args_list]
    assert files == [str(tmp_path / name) for name in ("report.json", "report.html", "images.png")]


@pytest.mark.parametrize("client", ["wandb"], indirect=True)
def test_wandb_is_told_figures_settings_and_files(client: MagicMock, make_report: Make, tmp_path: Path) -> None:
    log_report("wandb", make_report(scored=False), tmp_path)
    run = client.init.return_value.__enter__.return_value
    assert client.init.call_args.kwargs["config"]["guidance_scale"] == "3.0"
    (figures,) = run.log.call_args.args
    assert figures["latency_ratio"] == 0.5 and "clip_score_drift" not in figures  # what was not measured is not logged
    assert client.Artifact.return_value.add_file.call_count == 3
    run.log_artifact.assert_called_once_with(client.Artifact.return_value)


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_client_names_its_extra(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sdcompress.report.tracking.find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"sdcompress\[{name}\]"):
        check_tracker(name)
    with pytest.raises(UserError, match=name), logged(tmp_path, name):
        pytest.fail("must stop before hours of evaluation, not after")
    with pytest.raises(UserError, match="use one of mlflow, wandb"):
        check_tracker("tensorboard")
