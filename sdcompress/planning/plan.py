"""The plan: what a recipe will do to a model, found out from specs before any weight is read."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile

from sdcompress.backends.component import MeasuringContext
from sdcompress.backends.onnx.settings import observed_layers
from sdcompress.errors import Problem, ProblemList, RecipeError, UserError, nearest
from sdcompress.planning.recipe import Recipe
from sdcompress.planning.schedulers import SCHEDULER, scheduler_spec
from sdcompress.planning.steps import Planned, Stage, Step
from sdcompress.planning.steps.export import Export
from sdcompress.progress import Listener, silent
from sdcompress.quant.statistics import Limits, block_sizes, fitting_limit
from sdcompress.sources.quantized_source import quantized_as, what_to_do
from sdcompress.sources.source import Source
from sdcompress.sources.spec import ComponentSpec

# What a process holds before it works on a tensor: Python, torch and, where a step asks for it, bitsandbytes.
# VmHWM on Linux with the CPU build of torch 2.13, and 10 % (tests/execution/test_execute.py compares with VmHWM).
RUNTIME_BYTES = 265 * 2**20
# Beside the component itself in float32: activations and histograms at 512x512, and by the size of the component what
# the allocator keeps (VmHWM of SD 1.5 and SDXL).
CALIBRATION_BYTES, CALIBRATION_SHARE = 600 * 2**20, 0.25
TRAINING_BYTES = 400 * 2**20  # diffusers, transformers, accelerate and what the allocator keeps
RUNTIME_BYTES_OF = {"bitsandbytes": 140 * 2**20, "onnxscript": 700 * 2**20}
EXTRA_OF = {"bitsandbytes": "bnb", "onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx"}


@dataclass(frozen=True)
class PlannedStep:
    """One step of one component: the spec before it, and what it makes of it."""

    component: str
    step: Step
    before: ComponentSpec
    planned: Planned


@dataclass(frozen=True)
class Plan:
    """What will be done, what it will give, and the memory it will take.

    Args:
        steps: the steps of all components, in the order in which they are applied.
        peak_bytes: the most memory that the whole process will hold.
        modified_source: the source after the steps that replace components and fuse LoRAs; all later steps take it for
            the original.
    """

    recipe: Recipe
    source: Source
    steps: tuple[PlannedStep, ...]
    peak_bytes: int
    modified_source: Source

    def steps_of(self, component: str) -> tuple[PlannedStep, ...]:
        """Return the component's steps."""
        return tuple(step for step in self.steps if step.component == component)

    def after(self, component: str) -> ComponentSpec:
        """Return the component's spec after all its steps."""
        steps = self.steps_of(component)
        return steps[-1].planned.spec if steps else self.source.components[component]

    @property
    def replaced_parts(self) -> dict[str, dict[str, str]]:
        """Replaced part without weights (the scheduler) -> its class before and after."""
        return {
            step.component: {"original": step.before.class_name, "compressed": step.planned.spec.class_name}
            for step in self.steps
            if step.component not in self.source.components
        }

    @property
    def components_after(self) -> dict[str, ComponentSpec]:
        return {name: self.after(name) for name in self.source.components}


def make_plan(recipe: Recipe, source: Source, listener: Listener = silent) -> Plan:
    """Return the plan of the recipe for the model. No weight is read, unless a step has to measure something first.

    Args:
        listener: told of the runs that measure the original (`prune: {auto: 30%}`). What was measured is cached.

    Raises:
        RecipeError: with everything that cannot be done; the fields are YAML paths.

    Examples:
        >>> from sdcompress.planning.recipe import load_recipe
        >>> from sdcompress.sources.opening import open_source
        >>> plan = make_plan(load_recipe("int8"), open_source("sd15"))
        >>> f"{plan.source.weights_bytes:,} -> {sum(spec.weights_bytes for spec in plan.components_after.values()):,}"
        '2,740,433,790 -> 1,372,588,672'
    """
    if source.format != "safetensors":
        raise RecipeError(f"{source.name}: is exported already; start from the original weights")
    return _Planner(recipe, source, listener).make_plan()


class _Planner:
    """The planning of one recipe, with the problems found so far."""

    def __init__(self, recipe: Recipe, source: Source, listener: Listener):
        self._recipe, self._source, self._listener = recipe, source, listener
        self._problems = ProblemList()

    def make_plan(self) -> Plan:
        recipe = self._recipe
        of_components = {key: steps for key, steps in recipe.components.items() if key != SCHEDULER}
        keys, problems = assign_components(of_components, self._source.components)
        self._problems += problems
        modified, first_steps = self._plan_first_steps(keys)
        steps = [*first_steps.get(SCHEDULER, ())]
        for component, spec in modified.components.items():
            if component in keys:
                context = MeasuringContext(modified, component, recipe.calibration, self._listener)
                steps += self._plan_component(keys[component], spec, context, first_steps.get(component, ()))
            elif recipe.target == "onnx" and (quantized := quantized_as(spec)) is not None:
                what = f"{component} is quantized already ({quantized}), and ONNX is exported from plain weights"
                self._problems.add(f"components ({component} in none)", f"{what}; start from the original weights")
            elif recipe.target == "onnx":
                steps += self._plan_steps(f"components ({component} in none)", (Export(),), spec)
        packages = {package for step in steps for package in step.planned.requires}
        for package in sorted(package for package in packages if importlib.util.find_spec(package) is None):
            self._problems.add(
                "",
                f"{package} is needed by this recipe and not installed; pip install 'sdcompress[{EXTRA_OF[package]}]'",
            )
        for step in steps:
            path = f"components.{step.component}.{step.step.kind}"
            self._problems += [problem.inside(path) for problem in step.step.pipeline_problems(modified)]
        self._problems.raise_any(RecipeError)
        return Plan(recipe, self._source, tuple(steps), _peak_bytes(steps, modified), modified)

    def _plan_first_steps(self, keys: Mapping[str, str]) -> tuple[Source, dict[str, list[PlannedStep]]]:
        """Plan the steps up to FUSE; return the source after them, and the steps by component."""
        planned: dict[str, list[PlannedStep]] = {}
        source, specs = self._source, dict(self._source.components)
        if SCHEDULER in self._recipe.components:
            keys = {**keys, SCHEDULER: SCHEDULER}
            with self._problems.collect(f"components.{SCHEDULER}"):
                specs[SCHEDULER] = _scheduler_to_replace(self._recipe, source)
        for component in (name for name in keys if name in specs and quantized_as(specs[name]) is None):
            steps = _first_steps(self._recipe.components[keys[component]])
            planned[component] = self._plan_steps(f"components.{keys[component]}", steps, specs[component])
            for each in planned[component]:
                source = each.step.modified(source, component)
        return source, planned

    def _plan_component(
        self, key: str, spec: ComponentSpec, context: MeasuringContext, first_steps: Sequence[PlannedStep]
    ) -> list[PlannedStep]:
        """Return the component's planned steps, of which the first ones are planned already."""
        quantized = quantized_as(spec)
        if quantized is not None:
            self._problems.add(f"components.{key}", what_to_do(spec.name, quantized))
            return []
        steps = self._recipe.components[key]
        if len(first_steps) < len(_first_steps(steps)):
            return list(first_steps)  # the next one has a problem, which is reported already
        if self._recipe.target == "onnx" and not any(isinstance(step, Export) for step in steps):
            steps = (*steps, Export())
        return self._plan_steps(f"components.{key}", steps, spec, context, first_steps)

    def _plan_steps(
        self,
        path: str,
        steps: Sequence[Step],
        spec: ComponentSpec,
        context: MeasuringContext | None = None,
        done: Sequence[PlannedStep] = (),
    ) -> list[PlannedStep]:
        """Return the steps planned one after the other on the spec, the first ones being `done`."""
        planned = [*done]
        for index, step in list(enumerate(steps))[len(done) :]:
            # Several components under one key may share a mistake; `collect` keeps it once.
            with self._problems.collect(f"{path}.{index}.{step.kind}"):
                _check_order(step, steps[:index], planned)
                if context is not None and context.source.path is not None and len(planned) == len(done):
                    step = step.measured(context)
                result = step.plan(spec, self._recipe.target)
                if len(planned) > len(done) and result.calibrated and step.stage <= Stage.RECOVER:
                    raise UserError("is calibrated on the original, so no step may stand before it")
                planned.append(PlannedStep(spec.name, step, spec, result))
                spec = result.spec
        return planned


def assign_components(keys: Iterable[str], components: Mapping[str, object]) -> tuple[dict[str, str], list[Problem]]:
    """Return component -> the key of the recipe that it belongs to, in the pipeline's order, and what is wrong."""
    taken: dict[str, str] = {}
    problems = ProblemList()
    for key in (key for key in keys if key != "*"):
        names = [name for name in components if any(fnmatchcase(name, part) for part in key.rstrip("?").split("|"))]
        if not names and not key.endswith("?"):
            what = f"the pipeline has no such component; {nearest(key, components)}"
            problems.add(f"components.{key}", f"{what} (write {key}? if it may be missing)")
        for name in names:
            if name in taken:
                problems.add(f"components.{key}", f"{name} is taken by components.{taken[name]} already")
            taken.setdefault(name, key)
    if "*" in keys:
        taken = dict.fromkeys(components, "*") | taken
    return {name: taken[name] for name in components if name in taken}, problems


def layers_with_ranges(steps: Iterable[PlannedStep]) -> dict[str, tuple[str, ...]]:
    """Return component -> the layers whose activation ranges have to be calibrated."""
    found = {
        step.component: observed_layers(step.planned.spec.config) for step in steps if step.step.kind == "quantize"
    }
    return {component: layers for component, layers in found.items() if layers}


def layers_with_statistics(steps: Iterable[PlannedStep]) -> dict[str, tuple[str, ...]]:
    """Return component -> the layers whose input statistics have to be gathered."""
    found: dict[str, tuple[str, ...]] = {}
    for step in steps:
        if step.planned.calibrated:
            found[step.component] = tuple(dict.fromkeys((*found.get(step.component, ()), *step.planned.calibrated)))
    return found


def _first_steps(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Return the steps up to the first that takes the original as given."""
    return tuple(takewhile(lambda step: step.stage <= Stage.FUSE, steps))


def _scheduler_to_replace(recipe: Recipe, source: Source) -> ComponentSpec:
    """Return the pipeline's scheduler as a spec without tensors. UserError where it cannot be replaced."""
    wrong = [step.kind for step in recipe.components[SCHEDULER] if step.stage != Stage.REPLACE]
    if wrong:
        raise UserError(f"has no weights that {wrong[0]} could work on; only replace_component goes with it")
    spec = scheduler_spec(source)
    if spec is None:
        raise UserError("the pipeline has none, or its config is not here; give a diffusers folder")
    return spec


def _check_order(step: Step, before: Sequence[Step], planned: Sequence[PlannedStep]) -> None:
    """Raise UserError where the step may not stand after the steps before it."""
    if planned and step.stage < planned[-1].step.stage:
        raise UserError(f"must stand before {planned[-1].step.kind}")
    if step.follows is not None and all(other.kind != step.follows for other in before):
        raise UserError(f"follows a {step.follows} step, and none stands before it; add one")


def _peak_bytes(steps: Sequence[PlannedStep], source: Source) -> int:
    """Return the bytes of the runtime and of the largest working set, for one tensor at a time."""
    packages = {package for step in steps for package in step.planned.requires}
    runtime = RUNTIME_BYTES + sum(RUNTIME_BYTES_OF.get(package, 0) for package in packages)
    working = runtime + max((_working_bytes(step, source) for step in steps), default=0)
    names = {*layers_with_ranges(steps), *layers_with_statistics(steps)}
    if not names:
        return working
    largest = max(4 * source.components[name].parameters for name in names)
    calibrating = int((1 + CALIBRATION_SHARE) * largest)
    moments = []
    for pruning in (True, False):  # each has a calibration run of its own
        late = [step for step in steps if step.step.stage > Stage.FUSE]
        each = [step for step in late if (step.step.stage <= Stage.RECOVER) == pruning]
        before = {step.component: step.before for step in reversed(each)}
        moments += [_moments_bytes(before[name], layers) for name, layers in layers_with_statistics(each).items()]
    return max(working, RUNTIME_BYTES + CALIBRATION_BYTES + calibrating + max(moments, default=0))


def _working_bytes(step: PlannedStep, source: Source) -> int:
    """Return the bytes that a step holds at once; training holds the original component and its libraries too."""
    if not step.planned.trains:
        return step.planned.working_bytes
    return step.planned.working_bytes + TRAINING_BYTES + 4 * source.components[step.component].parameters


def _moments_bytes(spec: ComponentSpec, layers: Iterable[str]) -> int:
    """Return the bytes of the second moments that are gathered for a component's layers."""
    shapes = [spec.tensors[f"{layer}.weight"].shape for layer in layers]
    widths = [(math.prod(shape[1:]), math.prod(shape[2:])) for shape in shapes]
    limit = fitting_limit(widths, Limits())
    return sum(4 * size**2 for columns, kernel in widths for size in block_sizes(columns, kernel, limit))
