"""Search: from a target to a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdcompress.api.models import SourceOptions, source_of
from sdcompress.errors import ArtifactError, SourceError, UserError
from sdcompress.progress.choice import ProgressOption, listening

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sdcompress.evaluation.settings import EvaluationSettings
    from sdcompress.searching.result import SearchResult
    from sdcompress.sources.source import Source


def search(
    model: str | Path | Source | None = None,
    out: str | Path = "search",
    *,
    size: str | None = None,
    quality: str | None = None,
    space: str | Path | None = None,
    earlier: str | Path | None = None,
    finalists: int = 3,
    sensitivity: Literal["gradients", "weights"] = "gradients",
    prompts: str | Path | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    device: str = "auto",
    force: bool = False,
    progress: ProgressOption = "auto",
    **source_options: Unpack[SourceOptions],
) -> SearchResult:
    """Find the recipe that reaches a target with the least change of the pictures.

    The pictures' gradients tell what an error in each layer does to them. An exact solver chooses a format for every
    layer; pictures drawn with rounded layers correct the predictions; the best recipes are carried out and evaluated.

    Args:
        model: what `open_source` takes, or its result; of a search with `earlier` the same model, or None.
        out: the folder for recipe.yaml, search.json, search.html, search.png and the finalists.
        size: of the pipeline's weights: `0.3x` of the original's, `700MB` or `1.5GiB`.
        quality: what the pictures must reach, `psnr_db>=38`. Without `size` the size is made as small as that allows.
        space: a YAML file that narrows what layers may become (see docs/search.md); any format below 9 bits if None.
        earlier: the folder of an earlier search, whose scores are solved for another target without drawing.
        finalists: how many recipes are carried out and measured; with 0 the predicted best is written unmeasured.
        sensitivity: `gradients` of pictures, or `weights` for models that cannot draw here.
        prompts: a file of prompts, one a line; built-in ones if None.
        steps: denoising steps; the pipeline's own if None.
        guidance: guidance scale; the pipeline's own if None.
        device: `auto`, `cpu`, `cuda` or `mps`.
        force: replace an earlier search in `out`.
        progress: who is told how far it is; see `sdcompress.progress.choice.listening`.
        source_options: how the model is read.

    Raises:
        UserError: the target makes no sense or cannot be reached; the message names the smallest size.
        SourceError: the model cannot draw pictures here.

    Examples:
        >>> found = search("tiny-sd", "out/search", size="0.3x")  # doctest: +SKIP
        >>> found.finalists[0].psnr_db  # doctest: +SKIP
        57.3
    """
    from sdcompress.calibration.prompt_files import read_prompts
    from sdcompress.calibration.prompts import PromptSet, split_prompts
    from sdcompress.calibration.settings import Calibration
    from sdcompress.searching.result import FILE_NAME, read_result
    from sdcompress.searching.search import FINALIST_PICTURES, GRADIENT_PROMPTS, Search, SearchSettings
    from sdcompress.searching.space import Space, read_space
    from sdcompress.searching.target import parse_target
    from sdcompress.searching.views import write_views

    out = Path(out)
    target = parse_target(size=size, quality=quality)
    known = None if earlier is None else read_result(Path(earlier))
    if known is not None and space is not None:
        raise UserError("--from: takes the space from the earlier search; leave --space out")
    if model is None:
        if known is None:
            raise UserError("name a model, or an earlier search with --from")
        model, source_options = known.model, {**known.source_options, **source_options}  # type: ignore[typeddict-item]
    if (out / FILE_NAME).exists() and not force:
        raise ArtifactError(f"{out}: holds a search already; choose another --out, or --force")
    source = source_of(model, source_options)
    if source.path is None:
        raise SourceError(f"{source.name}: has no weights here, and a search draws pictures; give a folder")
    if known is not None and known.original_bytes != source.weights_bytes:
        raise UserError(f"--from {earlier}: is a search of another model, {known.model}")
    sampler = {"num_inference_steps": steps, "guidance_scale": guidance}
    drawn: dict[str, Any] = {name: value for name, value in sampler.items() if value is not None}
    calibration, evaluated = Calibration(prompt_count=GRADIENT_PROMPTS, **drawn), {**drawn, "device": device}
    if known is not None:
        calibration = Calibration(**{**known.calibration, **drawn})
        own = known.evaluation.get("prompts")
        evaluated = (
            known.evaluation
            | evaluated
            | ({} if own is None else {"prompts": PromptSet(**own | {"prompts": tuple(own["prompts"])})})
        )
    if prompts is not None:
        calibrated, others = split_prompts(read_prompts(Path(prompts)), GRADIENT_PROMPTS)
        calibration = Calibration(prompts=calibrated, **drawn)
        evaluated |= {"prompts": others, "prompt_count": min(FINALIST_PICTURES, len(others.prompts))}
    settings = SearchSettings(
        space=Space(**known.space) if known is not None else read_space(None if space is None else Path(space)),
        calibration=calibration,
        finalists=finalists,
        sensitivity=sensitivity,
        trials=sensitivity == "gradients",
        device=device,
        evaluation=SearchSettings().evaluation.model_copy(update=evaluated),
    )
    with listening(progress) as listener:

        def measure(artifact: Path, report: Path, evaluation: EvaluationSettings) -> dict[str, Any]:
            from sdcompress.api.evaluation import evaluate

            found = evaluate(
                source.name,  # by which built-in pipelines and their prompts are known
                artifact,
                report,
                settings=evaluation,
                force=True,
                progress=listener,
                recipe_gates=(),
                **source_options,
            )
            found.save(report)
            return found.similarity.psnr_db.model_dump() if found.similarity is not None else {}

        result = Search(source, target, settings, measure, listener, known).run(out)
    write_views(result, out)
    return result
