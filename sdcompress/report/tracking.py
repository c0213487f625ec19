"""A report logged to an experiment tracker through the tracker's own client: MLflow or Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from sdcompress.errors import UserError
from sdcompress.evaluation.samples import SIDES
from sdcompress.report.model import ReportData

PROJECT = "sdcompress"
FILES = ("report.json", "report.html", "images.png")


def check_tracker(name: str) -> None:
    """Raise UserError unless `name` is a known tracker whose client is installed."""
    if name not in TRACKERS:
        raise UserError(f"--log-to {name}: use one of {', '.join(TRACKERS)}")
    if find_spec(name) is None:
        raise UserError(f"--log-to {name}: its client is missing; install it with `pip install 'sdcompress[{name}]'`")


def log_report(name: str, report: ReportData, folder: Path) -> None:
    """Log the report's settings, figures and files. The tracker's own settings say where to."""
    check_tracker(name)
    TRACKERS[name](report.title, dict(list_settings(report)), dict(list_figures(report)), folder)


def list_settings(report: ReportData) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of what was evaluated and how."""
    yield "original", report.original.name
    yield "compressed", report.compressed.name
    yield "recipe", str((report.recipe or {}).get("description", "")).strip()
    yield "cpu", report.environment.cpu
    for name, value in report.settings.scalars().items():
        yield name, str(value)


def list_figures(report: ReportData) -> Iterator[tuple[str, float]]:
    """Yield (name, value) of every figure that was measured: both sides, drift, similarity."""
    for side in SIDES:
        for name, value in report.side(side):
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield f"{side}.{name}", float(value)
    for name, figure in (
        ("clip_score_drift", report.change.clip_score.difference),
        ("latency_ratio", report.change.latency_s.ratio),
        ("size_ratio", report.change.size_bytes.ratio),
        ("psnr_db", report.similarity.psnr_db.mean),
        ("ssim", report.similarity.ssim.mean),
    ):
        if figure is not None:
            yield name, float(figure)


def _log_mlflow(title: str, settings: dict[str, str], figures: dict[str, float], folder: Path) -> None:
    import mlflow

    with mlflow.start_run(run_name=title):
        mlflow.log_params(settings)
        mlflow.log_metrics(figures)
        for file in FILES:
            mlflow.log_artifact(str(folder / file))


def _log_wandb(title: str, settings: dict[str, str], figures: dict[str, float], folder: Path) -> None:
    import wandb

    with wandb.init(project=PROJECT, name=title, config=settings) as run:
        run.log(figures)
        artifact = wandb.Artifact("report", type="report")
        for file in FILES:
            artifact.add_file(str(folder / file))
        run.log_artifact(artifact)


TRACKERS: dict[str, Callable[[str, dict[str, str], dict[str, float], Path], None]] = {
    "mlflow": _log_mlflow,
    "wandb": _log_wandb,
}
