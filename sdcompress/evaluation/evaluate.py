"""Paired evaluation: the same prompts, seeds and initial latents through two pipelines, each in its own process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdcompress.calibration.input_pictures import describe_pictures, find_files, request_pictures, wanted_pictures
from sdcompress.calibration.prompts import PromptSet, default_prompts, is_tiny_sd
from sdcompress.environment import describe_environment
from sdcompress.errors import EvaluationError
from sdcompress.evaluation.attribution import Attribution, draw_swaps, plan_attribution
from sdcompress.evaluation.component_metrics import compare_components, pictures_to_record
from sdcompress.evaluation.drawing import draw_pairs
from sdcompress.evaluation.metrics.scorer import find_scorer
from sdcompress.evaluation.noise_floor import SEED_VARIANT, draw_floor, floor_variant, reasons_not_measured
from sdcompress.evaluation.result import Evaluation, describe_model
from sdcompress.evaluation.sample_log import SampleLog
from sdcompress.evaluation.samples import Drawing, Record, SetScoreRecord, Side
from sdcompress.evaluation.scoring import drifts_by_prompt, score_pictures, score_sets
from sdcompress.evaluation.session import Session
from sdcompress.evaluation.settings import EvaluationSettings, choose_some, list_drawings
from sdcompress.evaluation.stopping import Stopping, plan_looks, reason_to_stop
from sdcompress.files.manifest import MANIFEST_NAME, is_artifact, made_with, read_manifest
from sdcompress.planning.gates import parse_gate
from sdcompress.progress import Listener, silent
from sdcompress.sources.opening import open_source, with_weights
from sdcompress.sources.source import Source


def evaluate(
    original: str,
    compressed: str,
    out: Path,
    *,
    settings: EvaluationSettings | None = None,
    force: bool = False,
    listener: Listener = silent,
    command: str | None = None,
    gates: Sequence[str] = (),
    recipe_gates: Sequence[str] | None = None,
    source_options: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Draw with both pipelines, measure and score what they draw, and return all samples.

    A rerun with the same settings continues where an earlier one stopped.

    Args:
        original: the pipeline to compare with; whatever `open_source` takes.
        compressed: the pipeline to judge.
        out: the folder of the pictures, the sample log and the processes' logs.
        settings: how to evaluate; None for the defaults.
        force: whether an earlier evaluation in `out` is removed.
        listener: told of every finished picture.
        command: the command line, for the report.
        gates: thresholds to check, such as `psnr_db>=30`.
        recipe_gates: gates besides those; None for those of the recipe that the compressed pipeline was made with.
        source_options: what `open_source` takes besides, of the original.

    Raises:
        EvaluationError: it cannot be done as asked, or a process died.
    """
    settings = settings or EvaluationSettings()
    sources: dict[Side, Source] = {
        "original": open_source(original, **(source_options or {})), "compressed": open_source(compressed)
    }  # fmt: skip
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
    drawings, input_pictures = _with_inputs(list_drawings(settings, prompt_set), sources, settings)
    options = _sampler_options(settings, prompt_set)
    environment = describe_environment()
    header = {
        "models": {side: {"path": str(path), "files": _fingerprint_files(path)} for side, path in paths.items()},
        "prompts and seeds": [drawing.to_json() for drawing in drawings],
        **({"input pictures": input_pictures} if input_pictures else {}),
        "sampler options": options,
        "device, dtype or threads": [settings.device, settings.dtype, settings.threads, settings.latency_repeats],
        "memory mode": settings.low_memory,
        "machine or library versions": environment,
    }
    attribution = None
    if settings.attribute:
        attribution = plan_attribution(*_on_this_disk(sources, paths))
    demanded = (*(_gates_of(sources["compressed"]) if recipe_gates is None else recipe_gates), *gates)
    for gate in demanded:
        parse_gate(gate)  # a gate that is misspelt is known before any picture is drawn
    of_graphs = {side: source.format != "safetensors" for side, source in sources.items()}
    with (
        SampleLog(out, header, force, inside=tuple(paths.values())) as log,
        Session(log, out, paths, opening, of_graphs, settings, scorer, drawings, options, listener) as session,
    ):
        drawn, stopping = _draw_until_narrow(session)
        floor_not_measured = _measure_rest(session, drawn, attribution or Attribution())
    return Evaluation(
        folder=out,
        command=command,
        environment=environment,
        settings={
            **settings.model_dump(mode="json", exclude={"prompts"}),
            "prompt_set": prompt_set.name,
            "prompt_count": stopping.prompts,
            "stopping": stopping.to_json(),
            **options,
            "opened_with": opening,
            "input_pictures": input_pictures,
        },
        scorer=scorer,
        models={side: describe_model(source) for side, source in sources.items()},
        drawings=tuple(drawn),
        records=tuple(_records_of(drawn, log.records)),
        floor_not_measured=floor_not_measured,
        swaps=None if attribution is None else attribution.swaps,
        gates=demanded,
        made_with=made_with(sources["compressed"].path),
        stopping=stopping,
    )


def _draw_until_narrow(session: Session) -> tuple[list[Drawing], Stopping]:
    """Draw the pairs, and the noise floor of another seed, until the intervals are narrow enough.

    Returns:
        What was drawn, by index, and why no more.
    """
    settings = session.settings
    prompts = len(session.drawings) // settings.seeds_per_prompt
    looks = plan_looks(prompts, early=settings.prompt_count is None and session.scorer is not None)
    in_order: list[Drawing] = []
    reason = "all prompts were drawn" if settings.prompt_count is None else "as many prompts as were asked for"
    for look in looks:
        before = {drawing.index for drawing in in_order}
        drawn = _spread(session.drawings, settings.seeds_per_prompt, look)
        in_order += [drawing for drawing in drawn if drawing.index not in before]
        draw_pairs(session, in_order)
        session.to_record = pictures_to_record(session, drawn)
        draw_floor(session, drawn, "seed")
        if look == looks[-1]:
            break
        score_pictures(session, drawn, [SEED_VARIANT])
        drifts, redrawn = (drifts_by_prompt(session, drawn, label) for label in ("compressed", SEED_VARIANT))
        found = reason_to_stop(drifts, redrawn, looks)
        if found is not None:
            reason = found
            break
    return drawn, Stopping(looks, look, reason)


def _spread(drawings: Sequence[Drawing], per_prompt: int, prompts: int) -> list[Drawing]:
    """Return all drawings of so many prompts, which are spread evenly. Twice as many include these."""
    chosen = {drawing.index // per_prompt for drawing in choose_some(drawings[::per_prompt], prompts)}
    return [drawing for drawing in drawings if drawing.index // per_prompt in chosen]


def _measure_rest(session: Session, drawn: list[Drawing], attribution: Attribution) -> dict[str, str]:
    """Measure and score all else that was asked for. Return source of noise -> why it was not measured."""
    draw_floor(session, drawn, "batch")
    compare_components(session, drawn)
    draw_swaps(session, attribution, drawn)
    draw_floor(session, drawn, "bfloat16")
    session.end_pipelines()
    not_measured = reasons_not_measured(session)
    floors = [floor_variant(source) for source in session.settings.noise_floor if source not in not_measured]
    score_pictures(session, drawn, [*floors, *(label for label, _ in attribution.variants)])
    score_sets(session, drawn)
    return not_measured


def _records_of(drawn: Sequence[Drawing], records: Sequence[Record]) -> list[Record]:
    """Return the records that belong to these drawings; an earlier run may have drawn more."""
    indices = {drawing.index for drawing in drawn}
    return [
        record
        for record in records
        if getattr(record, "index", drawn[0].index) in indices
        and not (isinstance(record, SetScoreRecord) and record.over == "all" and record.count != len(drawn))
    ]


def _sampler_options(settings: EvaluationSettings, prompt_set: PromptSet) -> dict[str, Any]:
    return {
        "num_inference_steps": settings.num_inference_steps or prompt_set.num_inference_steps,
        "guidance_scale": prompt_set.guidance_scale if settings.guidance_scale is None else settings.guidance_scale,
        "height": settings.height,
        "width": settings.width,
        **({} if settings.strength is None else {"strength": settings.strength}),
    }


def _with_inputs(
    drawings: list[Drawing], sources: Mapping[Side, Source], settings: EvaluationSettings
) -> tuple[list[Drawing], dict[str, Any]]:
    """Return the drawings with the pictures that they are drawn from, and a description of those for the report."""
    original, compressed = (sources[side].pipeline_class for side in ("original", "compressed"))
    if wanted_pictures(original) != wanted_pictures(compressed):
        raise EvaluationError(
            f"the original is a {original}, the compressed a {compressed}: they do not draw from the same pictures, so "
            f"they cannot be compared"
        )
    files = find_files(settings.image, settings.mask, original)
    if wanted_pictures(original):
        # A seed of their own: the noise floor draws over the same picture with another.
        drawings = [
            each.model_copy(update={"inputs": request_pictures(files, original, each.index, each.seed)})
            for each in drawings
        ]
    return drawings, describe_pictures(files, original)


def _gates_of(source: Source) -> list[str]:
    """Return the gates of the recipe that an artifact was made with; [] for a pipeline that is no artifact."""
    if source.path is None or not is_artifact(source.path):
        return []
    return list(read_manifest(source.path).recipe.get("gates", ()))


def _opening(source: Source, settings: EvaluationSettings) -> dict[str, Any]:
    """Return how to open a pipeline. The dtype is for torch pipelines; exported ones are in that of their files."""
    of_graphs = source.format != "safetensors"
    return {
        "device": settings.device,
        "dtype": "auto" if of_graphs else settings.dtype,
        "threads": settings.threads,
        "low_memory": settings.low_memory and of_graphs,
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


def _on_this_disk(sources: Mapping[Side, Source], paths: Mapping[Side, Path]) -> list[Source]:
    """Return both sources with weights that can be read: those of a hub id as its folder in the cache."""
    return [source if source.path is not None else open_source(str(paths[side])) for side, source in sources.items()]


def _fingerprint_files(folder: Path) -> list[list[Any]]:
    """Return names, sizes and times of a pipeline's files: enough to notice that it was made anew.

    An artifact's manifest is left out, which changes when its model card does.
    """
    kinds = (".safetensors", ".json", ".onnx", ".onnx_data", ".data", ".xml", ".bin")
    files = sorted(file for file in folder.rglob("*") if file.suffix in kinds and file.name != MANIFEST_NAME)
    return [[str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
