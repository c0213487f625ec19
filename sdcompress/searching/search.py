"""The search: scores, the solver, trials that correct the scores, and finalists that are measured."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdcompress.calibration.settings import Calibration
from sdcompress.environment import describe_environment
from sdcompress.errors import UserError
from sdcompress.evaluation.settings import EvaluationSettings
from sdcompress.execution.execute import execute
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import parse_recipe
from sdcompress.progress import Listener, silent
from sdcompress.searching.allocate import Allocated, allocate, correction, predict, trade_off
from sdcompress.searching.finalists import check_target, list_finalists, measure_finalists, solve_target
from sdcompress.searching.recipe_writer import LayerChoice, write_recipe
from sdcompress.searching.result import Finalist, LayerScores, Scores, SearchResult, ShippedRecipe, Trial, psnr_db
from sdcompress.searching.space import KEPT, Space, fixed_bytes, list_choices
from sdcompress.searching.target import Target
from sdcompress.sources.source import DENOISERS, Source
from sdcompress.version import __version__

GRADIENT_PROMPTS = 16  # 32 change the chosen recipe's picture by less than prompts differ
TRIAL_PICTURES = 4
CURVE_SHARES = (0.85, 1.2)  # of the target's size, at which predictions are checked besides the target's own
FINALIST_PICTURES = 16
DRAWN = ("prompts", "prompt_count", "num_inference_steps", "guidance_scale")  # of an evaluation, kept in search.json
STATISTICS = {"prompt_count": 8, "num_inference_steps": 20}  # what searched recipes are calibrated on


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Args:
        space: which formats layers may have.
        calibration: the pictures that are differentiated, and drawn in trials.
        finalists: recipes that are carried out and evaluated; 0 for none, then the predicted one is written.
        trials: whether predictions are corrected by pictures drawn with rounded layers.
        sensitivity: `gradients` of pictures, or `weights`: errors of the weights alone, which need no pictures.
        device: where the pipeline runs.
        evaluation: of the finalists.
    """

    space: Space = field(default_factory=Space)
    calibration: Calibration = field(default_factory=lambda: Calibration(prompt_count=GRADIENT_PROMPTS))
    finalists: int = 3
    trials: bool = True
    sensitivity: str = "gradients"
    device: str = "auto"
    evaluation: EvaluationSettings = field(
        default_factory=lambda: EvaluationSettings(
            prompt_count=FINALIST_PICTURES, noise_floor=(), use_clip=False, component_metrics=False
        )
    )


Evaluate = Callable[[Path, Path, EvaluationSettings], Mapping[str, Any]]  # artifact, folder, settings -> similarity


class Search:
    """One search of one model; its steps share what they measured.

    Args:
        listener: told of gradients, layers, trials and finalists.
        evaluate: draws a finalist's pictures beside the original's, and returns `mean` and `interval_95` of their
            PSNR.
        earlier: a search whose scores and corrections are used in place of new ones.
    """

    def __init__(
        self,
        source: Source,
        target: Target,
        settings: SearchSettings,
        evaluate: Evaluate,
        listener: Listener = silent,
        earlier: SearchResult | None = None,
    ):
        self._source, self._target, self._settings = source, target, settings
        self._evaluate, self._listener, self._earlier = evaluate, listener, earlier
        self._choices = list_choices(source, settings.space)
        self._seconds: dict[str, float] = {}
        self._statistics: Mapping[str, Any] = {}
        self._corrections: dict[str, float] = {}
        self._trials: list[Trial] = []
        self._shipped: tuple[ShippedRecipe, ...] = ()

    def run(self, out: Path) -> SearchResult:
        """Search, and write recipe.yaml and search.json into `out`.

        Raises:
            UserError: the target cannot be reached, with what can.
        """
        check_target(self._target, self._source, self._choices)
        if self._earlier is None:
            with self._timed("scores"):
                scores = self._score()
            if self._settings.trials:
                with self._timed("trials"):
                    self._correct(scores)
        else:
            scores = self._earlier.scores
            self._corrections, self._trials = dict(self._earlier.corrections), [*self._earlier.trials]
            self._shipped = self._earlier.shipped
        with self._timed("solving"):
            found = self._solve(scores)
            curve = trade_off(scores, self._corrections)

        def carry_out(name: str, candidate: Allocated) -> Mapping[str, Any]:
            """Compress with the candidate's recipe, and return how close its pictures are."""
            report = out / "finalists" / name
            shutil.rmtree(report, ignore_errors=True)
            report.mkdir(parents=True)
            plan = make_plan(parse_recipe(self._recipe(scores, candidate), f"{name}.yaml"), self._source)
            execute(plan, report / "artifact", listener=self._listener)
            return self._evaluate(report / "artifact", report, self._settings.evaluation)

        out.mkdir(parents=True, exist_ok=True)
        (out / "recipe.yaml").write_text(self._recipe(scores, found), encoding="utf-8")
        finalists: tuple[Finalist, ...] = ()
        result = self._result(scores, found, curve, finalists)
        result.save(out)
        if self._settings.finalists:
            with self._timed("finalists"):
                candidates = list_finalists(
                    self._target, scores, self._source.weights_bytes, self._corrections, found, self._settings.finalists
                )
                found, finalists = measure_finalists(candidates, self._target, self._source.weights_bytes, carry_out)
            (out / "recipe.yaml").write_text(self._recipe(scores, found), encoding="utf-8")
            result = self._result(scores, found, curve, finalists)
            result.save(out)
        return result

    def _score(self) -> Scores:
        """Return the damages of all candidates."""
        measured = self._settings.sensitivity == "gradients"
        damages = self._gradient_scores() if measured else self._weight_scores()
        layers = tuple(
            LayerScores(
                component=each.component,
                layer=each.layer.name,
                kind=each.layer.kind,
                parameters=each.layer.parameters,
                labels=each.labels,
                weight_bytes=each.weight_bytes,
                damages=damages.get(each.key),
            )
            for each in self._choices
        )
        return Scores(
            fixed_bytes=fixed_bytes(self._source, self._choices),
            layers=layers,
            sensitivity="gradients" if measured else "weights",
            prompts=self._settings.calibration.prompt_count if measured else 0,
        )

    def _gradient_scores(self) -> dict[str, tuple[float, ...]]:
        import torch

        from sdcompress.backends.torch.loading import choose_device
        from sdcompress.backends.torch.picture_gradients import gather_gradients
        from sdcompress.searching.gradient_folder import GradientFolder
        from sdcompress.searching.scores import score_layers, score_shipped

        settings = self._settings
        wanted = _by_component(each for each in self._choices if each.measured)
        folder = GradientFolder.of(
            self._source, wanted, settings.calibration, choose_device(settings.device).type, torch.float32
        )
        indices = range(settings.calibration.prompt_count)
        gather_gradients(self._source, wanted, settings.calibration, folder, indices, self._listener, settings.device)
        statistics = self.statistics()
        gradients = folder.all(indices)
        self._shipped = score_shipped(self._source, self._choices, gradients, statistics)
        return score_layers(self._source, self._choices, gradients, statistics, self._listener)

    def statistics(self) -> Mapping[str, Any]:
        """Return component -> layer -> statistics of its input, from the cache or gathered."""
        from sdcompress.backends.torch.input_statistics import load_or_gather

        if not self._statistics:
            wanted = _by_component(each for each in self._choices if each.calibrated)
            calibration = _calibration(self._settings.calibration)
            self._statistics = load_or_gather(
                self._source, wanted, calibration, self._listener, device=self._settings.device
            )
        return self._statistics

    def _weight_scores(self) -> dict[str, tuple[float, ...]]:
        from sdcompress.searching.scores import weight_errors

        return weight_errors(self._source, self._choices, self._listener)

    def _correct(self, scores: Scores) -> None:
        """Measure parts of the allocation apart, which corrects their damages, and points along the curve."""
        from sdcompress.searching.trials import Trials

        few = first_prompts(self._settings.calibration, TRIAL_PICTURES)
        trials = Trials(self._source, few, self.statistics(), self._listener, self._settings.device)

        def measure(name: str, size: int, labels: Mapping[str, str]) -> Trial:
            measured = tuple(trials.measure(labels, name))
            trial = Trial(name=name, size_bytes=size, predicted=predict(scores, labels), measured=measured)
            self._trials.append(trial)
            return trial

        first = self._solve(scores)
        labels = first.labels(scores)
        for name, alone in self._parts(labels).items():
            trial = measure(f"{name} alone", first.size_bytes, alone)
            if trial.predicted > 0:
                self._corrections[name] = trial.mean / trial.predicted
        corrected = self._solve(scores)
        measure("target", corrected.size_bytes, corrected.labels(scores))
        for share in CURVE_SHARES:
            try:
                other = allocate(scores, share * corrected.size_bytes, corrections=self._corrections)
            except UserError:
                continue  # below the smallest
            measure(f"{share:g} x target", other.size_bytes, other.labels(scores))

    def _parts(self, labels: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Return the parts of an allocation that are corrected apart: the denoiser's formats, the other components."""
        parts: dict[str, dict[str, str]] = {}
        measured = {each.key for each in self._choices if each.measured}
        for key, label in labels.items():
            component = key.partition(":")[0]
            if key in measured and label != KEPT:
                name = f"{component}:{label}" if component in DENOISERS else component
                parts.setdefault(name, {})[key] = label
        return parts

    def _solve(self, scores: Scores) -> Allocated:
        """Return the best allocation for the target, with what is known by now."""
        return solve_target(self._target, scores, self._source.weights_bytes, self._corrections)

    def _recipe(self, scores: Scores, found: Allocated) -> str:
        by_key = {each.key: each for each in self._choices}
        chosen = [
            LayerChoice(
                by_key[f"{layer.component}:{layer.layer}"],
                place,
                None
                if layer.damages is None
                else layer.damages[place] * correction(self._corrections, layer.component, layer.labels[place]),
            )
            for layer, place in zip(scores.layers, found.places, strict=True)
        ]
        ratio = found.size_bytes / self._source.weights_bytes
        description = f"{found.size_bytes / 1e6:,.2f} MB of weights, {ratio:.2f} of the original; found by a search."
        notes = [
            f"Found by `sdcompress search` for {self._source.name}; it suits other weights of the same shapes less.",
            f"Predicted PSNR to the original's pictures: {psnr_db(found.damage):.1f} dB.",
        ]
        calibration = _calibration(self._settings.calibration).model_dump(mode="json", exclude_defaults=True)
        text = write_recipe(chosen, description, self._settings.space.rounding, calibration, notes)
        plan = make_plan(parse_recipe(text, "recipe.yaml"), self._source)
        planned = sum(spec.weights_bytes for spec in plan.components_after.values())
        assert planned == found.size_bytes, f"planned {planned}, counted {found.size_bytes}"
        return text

    def _result(
        self, scores: Scores, found: Allocated, curve: tuple[tuple[int, float], ...], finalists: tuple[Finalist, ...]
    ) -> SearchResult:
        target = self._target
        limits = {
            name: limit.text
            for name, limit in (("size", target.size), ("quality", target.quality))
            if limit is not None
        }
        return SearchResult(
            sdcompress=__version__,
            model=self._source.name,
            source_options=dict(self._source.given_options),
            original_bytes=self._source.weights_bytes,
            limits=limits,
            space=self._settings.space.model_dump(mode="json"),
            calibration=self._settings.calibration.model_dump(mode="json", exclude_defaults=True),
            evaluation=self._settings.evaluation.model_dump(mode="json", include=set(DRAWN), exclude_none=True),
            scores=scores,
            corrections=self._corrections,
            curve=curve,
            trials=tuple(self._trials),
            finalists=finalists,
            shipped=self._shipped,
            allocation=found.labels(scores),
            size_bytes=found.size_bytes,
            predicted=found.damage,
            gap=found.gap,
            seconds=self._seconds,
            environment=describe_environment(),
        )

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start_s = time.monotonic()
        yield
        self._seconds[phase] = round(time.monotonic() - start_s, 2)


def _by_component(choices: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in choices:
        found.setdefault(each.component, []).append(each.layer.name)
    return found


def _calibration(drawn: Calibration) -> Calibration:
    """Return the calibration of searched recipes: the search's own prompts, if it was given any."""
    if drawn.prompts is None:
        return drawn.model_copy(update=STATISTICS)
    return first_prompts(drawn, STATISTICS["prompt_count"])


def first_prompts(drawn: Calibration, count: int) -> Calibration:
    """Return the calibration with its first prompts only."""
    own = None if drawn.prompts is None else drawn.prompts[:count]
    return drawn.model_copy(update={"prompts": own, "prompt_count": min(count, drawn.prompt_count)})
