"""Paired evaluation: the same prompts, seeds and initial latents through two pipelines, each in its own process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.calibration.input_pictures import describe_pictures, find_files, request_pictures, wanted_pictures
from sdcompress.calibration.prompts import default_prompts, is_tiny_sd
from sdcompress.environment import describe_environment
from sdcompress.errors import EvaluationError
from sdcompress.evaluation.attribution import draw_swaps, list_swaps
from sdcompress.evaluation.component_metrics import compare_components
from sdcompress.evaluation.drawing import Session, draw_pair, score_all
from sdcompress.evaluation.metrics.scorer import find_scorer
from sdcompress.evaluation.noise_floor import draw_noise_floor, floor_variant
from sdcompress.evaluation.sample_log import SampleLog
from sdcompress.evaluation.settings import EvaluationSettings, list_drawings
from sdcompress.files.manifest import MANIFEST_NAME, is_artifact, made_with, read_manifest
from sdcompress.planning.gates import check_gates, parse_gate
from sdcompress.report import write_report
from sdcompress.report.build import build_report
from sdcompress.sources.opening import open_source, with_weights
from sdcompress.sources.source import Source

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def evaluate(
    original: str,
    compressed: str,
    out: Path,
    *,
    settings: EvaluationSettings | None = None,
    force: bool = False,
    console: Console | None = None,
    command: str | None = None,
    gates: Sequence[str] = (),
    recipe_gates: Sequence[str] | None = None,
    source_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The report of `compressed` against `original`, also written to `out` with the pictures and all raw samples.

    `original` and `compressed` are what `open_source` takes, `source_options` what it takes with the original. A rerun
    with the same settings continues where an earlier one stopped. `console` shows the progress (stderr when None);
    `command` is kept in the report. The report says which gates passed: `recipe_gates` (None: those of the recipe that
    an artifact was made with) and `gates`.
    """
    settings = settings or EvaluationSettings()
    out = Path(out)
    sources = {"original": open_source(original, **(source_options or {})), "compressed": open_source(compressed)}
    for side, source in sources.items():
        if source.kind == "single-file":
            sources[side] = with_weights(source)  # whose vocabularies may have to be fetched
    paths = {side: _local_folder(source) for side, source in sources.items()}
    opening = {side: _opening(source, settings) for side, source in sources.items()}
    if settings.low_memory and not any(each["low_memory"] for each in opening.values()):
        raise EvaluationError("--low-memory: neither pipeline is an ONNX folder, the only ones opened part by part")
    tiny_sd = is_tiny_sd(sources["original"])
    prompt_set = settings.prompts or default_prompts(tiny_sd)
    scorer = find_scorer(settings.clip, tiny_sd) if settings.use_clip else None
    drawings = list_drawings(settings, prompt_set)
    input_pictures = _add_inputs(drawings, sources, settings)
    options = {
        "num_inference_steps": settings.num_inference_steps or prompt_set.num_inference_steps,
        "guidance_scale": prompt_set.guidance_scale if settings.guidance_scale is None else settings.guidance_scale,
        "height": settings.height,
        "width": settings.width,
        **({} if settings.strength is None else {"strength": settings.strength}),
    }
    environment = describe_environment()
    header = {
        "models": {side: {"path": str(path), "files": _fingerprint_files(path)} for side, path in paths.items()},
        "prompts and seeds": drawings,
        **({"input pictures": input_pictures} if input_pictures else {}),
        "sampler options": options,
        "device, dtype or threads": [settings.device, settings.dtype, settings.threads, settings.latency_repeats],
        "memory mode": settings.low_memory,
        "machine or library versions": environment,
    }
    swaps = list_swaps(_on_this_disk(sources, paths)) if settings.attribute else None
    demanded = (*(_gates_of(sources["compressed"]) if recipe_gates is None else recipe_gates), *gates)
    for gate in demanded:
        parse_gate(gate)  # a gate that is misspelt is known before any picture is drawn
    onnx = {side: source.format != "safetensors" for side, source in sources.items()}
    with SampleLog(out, header, force, inside=tuple(paths.values())) as log, _progress(console) as progress:
        session = Session(log, out, paths, opening, onnx, settings, drawings, options, progress)
        draw_pair(session)
        floor_not_measured = draw_noise_floor(session)
        if settings.component_metrics:
            compare_components(session)
        draw_swaps(session, swaps or ())
        variants = [floor_variant(source) for source in settings.noise_floor if source not in floor_not_measured]
        score_all(session, scorer, [*variants, *(label for swap in swaps or () for label in swap.variants)])
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
            "input_pictures": input_pictures,
        },
        scorer=None if scorer is None else {"name": scorer.name, "path": str(scorer.path)},
        models={side: describe_model(source) for side, source in sources.items()},
        drawings=drawings,
        records=records,
        floor_not_measured=floor_not_measured,
        swaps=None if swaps is None else [swap.described() for swap in swaps],
    )
    report["gates"] = check_gates(report, demanded)
    report |= made_with(sources["compressed"].path)
    write_report(report, out)
    return report


def _add_inputs(
    drawings: list[dict[str, Any]], sources: Mapping[str, Source], settings: EvaluationSettings
) -> dict[str, Any]:
    """What the pipelines draw from besides prompts, for the report; each drawing is told what its pictures are."""
    original, compressed = (sources[side].pipeline_class for side in ("original", "compressed"))
    if wanted_pictures(original) != wanted_pictures(compressed):
        raise EvaluationError(
            f"the original is a {original}, the compressed a {compressed}: they do not draw from the same pictures, so "
            f"they cannot be compared"
        )
    files = find_files(settings.image, settings.mask, original)
    if wanted_pictures(original):
        for drawing in drawings:
            # Its own seed: the noise floor draws the same picture over with another.
            drawing["inputs"] = request_pictures(files, original, drawing["index"], drawing["seed"])
    return describe_pictures(files, original)


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
    if source.path is None or not is_artifact(source.path):
        return []
    return [
        {"component": component, "layer": layer, **facts.to_json()}
        for component, entry in read_manifest(source.path).components.items()
        for layer, facts in entry.layers.items()
    ]


def _gates_of(source: Source) -> list[str]:
    """The gates of the recipe that an artifact was made with; [] for a pipeline that is no artifact."""
    if source.path is None or not is_artifact(source.path):
        return []
    return list(read_manifest(source.path).recipe.get("gates", ()))


def _opening(source: Source, settings: EvaluationSettings) -> dict[str, Any]:
    """How to open one side. The dtype is for torch pipelines; exported ones are in that of their files."""
    onnx = source.format != "safetensors"
    return {
        "device": settings.device,
        "dtype": "auto" if onnx else settings.dtype,
        "threads": settings.threads,
        "low_memory": settings.low_memory and onnx,
        **({"variant": source.options["variant"]} if source.options.get("variant") else {}),
    }


def _local_folder(source: Source) -> Path:
    if source.path is not None:
        return source.path.resolve()
    if source.hub_id is not None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return Path(
                snapshot_download(source.hub_id, revision=source.options.get("revision"), local_files_only=True)
            )
        except LocalEntryNotFoundError:
            pass
    raise EvaluationError(
        f"{source.name}: its weights are not on this disk, and evaluating draws pictures; download the pipeline "
        f"(`hf download {source.hub_id or source.name}`) or give a diffusers folder"
    )


def _on_this_disk(sources: Mapping[str, Source], paths: Mapping[str, Path]) -> dict[str, Source]:
    """The sources with weights that can be read: those of a hub id as its folder in the cache."""
    return {
        side: source if source.path is not None else open_source(str(paths[side])) for side, source in sources.items()
    }


def _fingerprint_files(folder: Path) -> list[list[Any]]:
    """Names, sizes and times of a pipeline's files: enough to notice that it was made anew.

    Not of an artifact's manifest, which changes when its model card does.
    """
    kinds = (".safetensors", ".json", ".onnx", ".onnx_data", ".data", ".xml", ".bin")
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
