"""Paired evaluation: the same prompts, seeds and initial latents through two pipelines, each in its own process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sdcompress.artifact import made_with, read_manifest
from sdcompress.environment import describe_environment
from sdcompress.errors import EvaluationError
from sdcompress.metrics.scorer import Scorer, find_scorer
from sdcompress.prompts import PromptSet, default_prompts, is_tiny_sd
from sdcompress.report import write_report
from sdcompress.report.build import build_report
from sdcompress.sample_log import SampleLog
from sdcompress.source import MANIFEST_NAME, Source, open_source
from sdcompress.worker_process import WorkerProcess

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

SIDES = ("original", "compressed")


class EvaluationSettings(BaseModel):
    """How to evaluate. None means: what the pipeline or its prompt set says."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    prompts: PromptSet | None = None
    prompt_count: int | None = Field(None, ge=1)
    seeds_per_prompt: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0)
    height: int | None = Field(None, ge=8)
    width: int | None = Field(None, ge=8)
    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    threads: int | None = Field(None, ge=1)
    low_memory: bool = False
    latency_repeats: int = Field(1, ge=1)
    clip: str | None = None
    use_clip: bool = True


def evaluate(
    original: str,
    compressed: str,
    out: Path,
    *,
    settings: EvaluationSettings | None = None,
    force: bool = False,
    console: Console | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """The report of `compressed` against `original`, also written to `out` with the pictures and all raw samples.

    `original` and `compressed` are what `open_source` takes. A rerun with the same settings continues where an
    earlier one stopped. `console` shows the progress (stderr when None); `command` is kept in the report.
    """
    settings = settings or EvaluationSettings()
    out = Path(out)
    sources = {"original": open_source(original), "compressed": open_source(compressed)}
    paths = {side: _local_folder(source) for side, source in sources.items()}
    opening = {side: _opening(source, settings) for side, source in sources.items()}
    if settings.low_memory and not any(each["low_memory"] for each in opening.values()):
        raise EvaluationError("--low-memory: neither pipeline is an ONNX folder, the only ones opened part by part")
    tiny_sd = is_tiny_sd(sources["original"])
    prompt_set = settings.prompts or default_prompts(tiny_sd)
    scorer = find_scorer(settings.clip, tiny_sd) if settings.use_clip else None
    drawings = list_drawings(settings, prompt_set)
    options = {
        "num_inference_steps": settings.num_inference_steps or prompt_set.num_inference_steps,
        "guidance_scale": prompt_set.guidance_scale if settings.guidance_scale is None else settings.guidance_scale,
        "height": settings.height,
        "width": settings.width,
    }
    environment = describe_environment()
    header = {
        "models": {side: {"path": str(path), "files": _fingerprint_files(path)} for side, path in paths.items()},
        "prompts and seeds": drawings,
        "sampler options": options,
        "device, dtype or threads": [settings.device, settings.dtype, settings.threads, settings.latency_repeats],
        "memory mode": settings.low_memory,
        "machine or library versions": environment,
    }
    with SampleLog(out, header, force, inside=tuple(paths.values())) as log, _progress(console) as progress:
        _draw_all(log, out, paths, opening, settings, drawings, options, progress)
        _score_all(log, out, drawings, scorer, progress, settings.threads)
        records = log.records
    report = build_report(
        command=command,
        environment=environment,
        settings={
            **settings.model_dump(mode="json", exclude={"prompts"}),
            "prompt_set": prompt_set.name,
            "prompt_count": len(drawings) // settings.seeds_per_prompt,
            **options,
            "opened_with": opening,
        },
        scorer=None if scorer is None else {"name": scorer.name, "path": str(scorer.path)},
        models={side: describe_model(source) for side, source in sources.items()},
        drawings=drawings,
        records=records,
    )
    report |= made_with(sources["compressed"].path)
    write_report(report, out)
    return report


def list_drawings(settings: EvaluationSettings, prompt_set: PromptSet) -> list[dict[str, Any]]:
    """Every picture to draw: its index, prompt and seed. No two pictures share a seed."""
    count = settings.prompt_count or min(prompt_set.default_count, len(prompt_set.prompts))
    if count > len(prompt_set.prompts):
        raise EvaluationError(
            f"evaluation.prompt_count: {count} prompts asked for, but {prompt_set.name} has "
            f"{len(prompt_set.prompts)}; ask for fewer or give more with --prompts FILE"
        )
    prompts = prompt_set.take(count)
    per_prompt = settings.seeds_per_prompt
    return [
        {"index": index, "prompt": prompts[index // per_prompt], "seed": settings.seed + index}
        for index in range(count * per_prompt)
    ]


def describe_model(source: Source) -> dict[str, Any]:
    """What the files of a pipeline say: parameters and bytes, whole and per component."""
    return {
        "name": source.name,
        "pipeline_class": source.pipeline_class,
        "parameters": source.parameters,
        "size_bytes": source.size_bytes,
        "weights_bytes": source.weights_bytes,
        "components": {
            name: {
                "parameters": component.parameters,
                "weights_bytes": component.weights_bytes,
                "bits_per_weight": component.bits_per_weight,
            }
            for name, component in source.components.items()
        },
        "layers": _layers_of(source),
    }


def _layers_of(source: Source) -> list[dict[str, Any]]:
    """What became of each layer, as the artifact's manifest says; [] for a pipeline that is no artifact."""
    if source.path is None or not (source.path / MANIFEST_NAME).is_file():
        return []
    components = read_manifest(source.path)["components"]
    return [
        {"component": component, "layer": layer, **facts}
        for component, entry in components.items()
        for layer, facts in entry["layers"].items()
    ]


def picture_path(side: str, index: int) -> str:
    """Where a picture lies, relative to the evaluation's folder."""
    return f"images/{side}/{index:04d}.png"


def _draw_all(
    log: SampleLog,
    out: Path,
    paths: dict[str, Path],
    opening: dict[str, dict[str, Any]],
    settings: EvaluationSettings,
    drawings: list[dict[str, Any]],
    options: dict[str, Any],
    progress: Progress,
) -> None:
    todo = _missing(log, out, drawings, settings.latency_repeats)
    if not todo:
        return
    for side in SIDES:
        (out / "images" / side).mkdir(parents=True, exist_ok=True)
    task = progress.add_task("loading both pipelines", total=None)
    with ExitStack() as stack:
        workers, opened = {}, {}
        for side in SIDES:
            log_file = out / "logs" / f"{side}.log"
            process = WorkerProcess(
                f"{side} ({paths[side]})", log_file, environment=_thread_variables(settings.threads)
            )
            worker = stack.enter_context(process)
            opened[side] = worker.ask(do="open", path=str(paths[side]), **opening[side])
            _check_device(opened)
            warm = worker.ask(
                do="draw", prompt=drawings[0]["prompt"], seed=0, options=options, picture=None, warm_up=True
            )
            log.append({"kind": "process", "side": side, **opened[side], "warm_up_latency_s": warm["latency_s"]})
            workers[side] = worker
        progress.update(task, description="drawing", total=len(todo), completed=0)
        progress.reset(task)
        for drawing, repeat, side in todo:
            answer = workers[side].ask(
                do="draw",
                prompt=drawing["prompt"],
                seed=drawing["seed"],
                options=options,
                picture=None if repeat else str(out / picture_path(side, drawing["index"])),
            )
            log.append({"kind": "picture", "side": side, "index": drawing["index"], "repeat": repeat, **answer})
            progress.advance(task)


def _missing(
    log: SampleLog, out: Path, drawings: list[dict[str, Any]], repeats: int
) -> list[tuple[dict[str, Any], int, str]]:
    """The drawings still to do, in the order original, compressed, compressed, original, ... of the whole run."""
    done = {(record["index"], record["repeat"], record["side"]) for record in log.of_kind("picture")}
    todo = []
    for drawing in drawings:
        for repeat in range(repeats):
            for side in SIDES if (drawing["index"] + repeat) % 2 == 0 else reversed(SIDES):
                there = (out / picture_path(side, drawing["index"])).is_file()
                if (drawing["index"], repeat, side) not in done or (repeat == 0 and not there):
                    todo.append((drawing, repeat, side))
    return todo


def _score_all(
    log: SampleLog,
    out: Path,
    drawings: list[dict[str, Any]],
    scorer: Scorer | None,
    progress: Progress,
    threads: int | None,
) -> None:
    """Scores the saved pictures, once both pipelines have left the memory."""
    name = None if scorer is None else scorer.name
    done = {record["index"] for record in log.of_kind("score") if record["scorer"] == name}
    todo = [drawing for drawing in drawings if drawing["index"] not in done]
    if not todo:
        return
    task = progress.add_task("scoring", total=len(todo))
    log_file = out / "logs" / "scoring.log"
    with WorkerProcess("scoring", log_file, environment=_thread_variables(threads)) as worker:
        worker.ask(do="open_judge", scorer=None if scorer is None else str(scorer.path))
        for drawing in todo:
            files = {side: str(out / picture_path(side, drawing["index"])) for side in SIDES}
            figures = worker.ask(do="score", prompt=drawing["prompt"], **files)
            log.append({"kind": "score", "index": drawing["index"], "scorer": name, **figures})
            progress.advance(task)


def _opening(source: Source, settings: EvaluationSettings) -> dict[str, Any]:
    """How to open one side. The dtype is for torch pipelines, whatever the precision in an ONNX pipeline's files."""
    onnx = source.format == "onnx"
    return {
        "device": settings.device,
        "dtype": "auto" if onnx else settings.dtype,
        "threads": settings.threads,
        "low_memory": settings.low_memory and onnx,
    }


def _check_device(opened: dict[str, dict[str, Any]]) -> None:
    devices = [answer["device"] for answer in opened.values()]
    if len(set(devices)) > 1:
        raise EvaluationError(
            f"the original runs on {devices[0]}, the compressed pipeline on {devices[1]}, which compares devices, not "
            f"pipelines; give --device cpu, or install the onnxruntime package for {devices[0]} (sdcompress doctor)"
        )


def _thread_variables(threads: int | None) -> dict[str, str]:
    return {} if threads is None else {"OMP_NUM_THREADS": str(threads)}


def _local_folder(source: Source) -> Path:
    if source.path is not None:
        return source.path.resolve()
    if source.hub_id is not None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return Path(snapshot_download(source.hub_id, local_files_only=True))
        except LocalEntryNotFoundError:
            pass
    raise EvaluationError(
        f"{source.name}: its weights are not on this disk, and evaluating draws pictures; download the pipeline "
        f"(`hf download {source.hub_id or source.name}`) or give a diffusers folder"
    )


def _fingerprint_files(folder: Path) -> list[list[Any]]:
    """Names, sizes and times of a pipeline's files: enough to notice that it was made anew.

    Not of an artifact's manifest, which changes when its model card does.
    """
    kinds = (".safetensors", ".json", ".onnx", ".onnx_data", ".data")
    files = sorted(file for file in folder.rglob("*") if file.suffix in kinds and file.name != MANIFEST_NAME)
    return [[str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


@contextmanager
def _progress(console: Console | None) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console or Console(stderr=True)) as progress:
        yield progress
