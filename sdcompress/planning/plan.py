"""The plan: a recipe folded over a source's specs, before any weight is read."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile

from sdcompress.backends.onnx.settings import observed_layers
from sdcompress.errors import RecipeError, UserError, nearest
from sdcompress.planning.recipe import Recipe
from sdcompress.planning.schedulers import SCHEDULER, scheduler_spec
from sdcompress.planning.steps import Origin, Planned, Stage, Step
from sdcompress.planning.steps.export import Export
from sdcompress.quant.statistics import Limits, block_sizes, fitting_limit
from sdcompress.sources.quantized_source import quantized_as, what_to_do
from sdcompress.sources.source import Source
from sdcompress.sources.spec import ComponentSpec

# What a process holds before it works on a tensor: Python, torch and, where a step asks for it, bitsandbytes.
# VmHWM on Linux with the CPU build of torch 2.13, and 10 % (tests/test_execute.py holds the plan to what is measured).
RUNTIME_BYTES = 265 * 2**20
# Beside the component itself in float32: activations and histograms at 512x512, and by the size of the component what
# the allocator keeps (VmHWM of SD 1.5 and SDXL).
CALIBRATION_BYTES, CALIBRATION_SHARE = 600 * 2**20, 0.25
TRAINING_BYTES = 400 * 2**20  # diffusers, transformers, accelerate and what the allocator keeps
RUNTIME_BYTES_OF = {"bitsandbytes": 140 * 2**20, "onnxscript": 700 * 2**20}
EXTRA_OF = {"bitsandbytes": "bnb", "onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx"}


@dataclass(frozen=True)
class PlannedStep:
    """One step of one component with the spec before it; `planned.spec` is the one after."""

    component: str
    step: Step
    before: ComponentSpec
    planned: Planned


@dataclass(frozen=True)
class Plan:
    """All that will be done, what it will give, and the most memory it will take."""

    recipe: Recipe
    source: Source
    steps: tuple[PlannedStep, ...]
    peak_bytes: int
    prepared: Source  # as the steps that replace and fuse leave it: the original to all that come after them

    def steps_of(self, component: str) -> tuple[PlannedStep, ...]:
        return tuple(step for step in self.steps if step.component == component)

    def after(self, component: str) -> ComponentSpec:
        """The component's spec when all its steps are done."""
        steps = self.steps_of(component)
        return steps[-1].planned.spec if steps else self.source.components[component]

    @property
    def replaced_parts(self) -> dict[str, dict[str, str]]:
        """Part without weights -> its class before and after."""
        return {
            step.component: {"original": step.before.class_name, "compressed": step.planned.spec.class_name}
            for step in self.steps
            if step.component not in self.source.components
        }

    @property
    def components_after(self) -> dict[str, ComponentSpec]:
        return {name: self.after(name) for name in self.source.components}


def make_plan(
    recipe: Recipe, source: Source, measuring: Callable[[str, int, int], None] = lambda component, done, total: None
) -> Plan:
    """The recipe's steps planned on the source. RecipeError lists everything that cannot be done, by YAML path.

    Where a step has to measure the original first (`prune: {auto: 30%}`), which is kept for the next time, `measuring`
    hears the component, the runs done and how many there are.
    """
    problems: list[str] = []
    if source.format != "safetensors":
        raise RecipeError(f"{source.name}: is exported already; start from the original weights")
    planned: list[PlannedStep] = []
    of_components = {key: steps for key, steps in recipe.components.items() if key != SCHEDULER}
    keys = assign_components(of_components, source.components, problems)
    prepared, begun = _prepare(recipe, keys, source, problems)
    planned += begun.get(SCHEDULER, ())
    for component, spec in prepared.components.items():
        if component in keys:
            origin = Origin(prepared, component, recipe.calibration, measuring)
            planned += _plan_component(recipe, keys[component], spec, problems, origin, begun.get(component, ()))
        elif recipe.target == "onnx" and (quantized := quantized_as(spec)) is not None:
            problems.append(
                f"components ({component} in none): {component} is quantized already ({quantized}), and ONNX is "
                f"exported from plain weights; start from the original weights"
            )
        elif recipe.target == "onnx":
            planned += _plan_steps(f"components ({component} in none)", (Export(),), spec, recipe.target, problems)
    problems += [
        f"{package} is needed by this recipe and not installed; pip install 'sdcompress[{EXTRA_OF[package]}]'"
        for package in sorted({package for step in planned for package in step.planned.requires})
        if importlib.util.find_spec(package) is None
    ]
    problems += _source_problems(planned, prepared)
    if problems:
        raise RecipeError(problems)
    return Plan(recipe, source, tuple(planned), _peak_bytes(planned, prepared), prepared)


def assign_components(
    keys: Mapping[str, object], components: Mapping[str, object], problems: list[str]
) -> dict[str, str]:
    """Component -> the key of the recipe that takes it, in the pipeline's order; conflicts go into `problems`."""
    taken: dict[str, str] = {}
    for key in keys:
        if key == "*":
            continue
        names = [name for name in components if any(fnmatchcase(name, part) for part in key.rstrip("?").split("|"))]
        if not names and not key.endswith("?"):
            problems.append(
                f"components.{key}: the pipeline has no such component; {nearest(key, components)} "
                f"(write {key}? if it may be missing)"
            )
        for name in names:
            if name in taken:
                problems.append(f"components.{key}: {name} is taken by components.{taken[name]} already")
            taken.setdefault(name, key)
    if "*" in keys:
        for name in components:
            taken.setdefault(name, "*")
    return {name: taken[name] for name in components if name in taken}


def _prepare(
    recipe: Recipe, keys: Mapping[str, str], source: Source, problems: list[str]
) -> tuple[Source, dict[str, list[PlannedStep]]]:
    """The source after the steps up to FUSE, and these by component; what is wrong goes into `problems`."""
    done: dict[str, list[PlannedStep]] = {}
    specs = dict(source.components)
    if SCHEDULER in recipe.components:
        keys = {**keys, SCHEDULER: SCHEDULER}
        specs |= _scheduler_to_replace(recipe, source, problems)
    for component in (name for name in keys if name in specs and quantized_as(specs[name]) is None):
        where = f"components.{keys[component]}"
        leading = _leading(recipe.components[keys[component]])
        done[component] = _plan_steps(where, leading, specs[component], recipe.target, problems)
        for each in done[component]:
            source = each.step.prepared(source, component)
    return source, done


def _leading(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps up to the first that takes the original as given."""
    return tuple(takewhile(lambda step: step.stage <= Stage.FUSE, steps))


def _scheduler_to_replace(recipe: Recipe, source: Source, problems: list[str]) -> dict[str, ComponentSpec]:
    """The pipeline's scheduler as a spec without tensors; nothing where the recipe asks for what cannot be done."""
    where = f"components.{SCHEDULER}"
    wrong = [step.kind for step in recipe.components[SCHEDULER] if step.stage != Stage.REPLACE]
    spec = scheduler_spec(source)
    if wrong:
        problems.append(f"{where}: has no weights that {wrong[0]} could work on; only replace_component goes with it")
    elif spec is None:
        problems.append(f"{where}: the pipeline has none, or its config is not at hand; give a diffusers folder")
    else:
        return {SCHEDULER: spec}
    return {}


def _plan_component(
    recipe: Recipe,
    key: str,
    spec: ComponentSpec,
    problems: list[str],
    origin: Origin,
    prepared: Sequence[PlannedStep],
) -> list[PlannedStep]:
    """The key's steps folded over the spec, the `prepared` ones being folded already; problems go into `problems`."""
    where = f"components.{key}"
    quantized = quantized_as(spec)
    if quantized is not None:
        problems.append(f"{where}: {what_to_do(spec.name, quantized)}")
        return []
    steps = recipe.components[key]
    if len(prepared) < len(_leading(steps)):
        return list(prepared)  # what is wrong with the next one was said
    if recipe.target == "onnx" and not any(isinstance(step, Export) for step in steps):
        steps = (*steps, Export())
    return _plan_steps(where, steps, spec, recipe.target, problems, origin, prepared)


def _plan_steps(
    where: str,
    steps: Sequence[Step],
    spec: ComponentSpec,
    target: str,
    problems: list[str],
    origin: Origin | None = None,
    begun: Sequence[PlannedStep] = (),
) -> list[PlannedStep]:
    """The steps folded over the spec, the first ones being `begun`; what is wrong goes into `problems`."""
    planned: list[PlannedStep] = []
    for index, step in list(enumerate(steps))[len(begun) :]:
        path = f"{where}.{index}.{step.kind}"
        earlier = [*begun, *planned]
        if earlier and step.stage < earlier[-1].step.stage:
            problems.append(f"{path}: must stand before {earlier[-1].step.kind}")
            continue
        if step.follows is not None and all(other.kind != step.follows for other in steps[:index]):
            problems.append(f"{path}: follows a {step.follows} step, and none stands before it; add one")
            continue
        try:
            if origin is not None and origin.source.path is not None and not planned:
                step = step.measured(origin)
            result = step.plan(spec, target)
        except UserError as error:
            # Several components under one key may share a mistake: say it once.
            found = (
                f"{path}.{problem}" if ":" in problem.split(" ")[0] else f"{path}: {problem}"
                for problem in error.problems
            )
            problems += [line for line in found if line not in problems]
            continue
        if planned and result.calibrated and step.stage <= Stage.RECOVER:
            problems.append(f"{path}: is calibrated on the original, so no step may stand before it")
            continue
        planned.append(PlannedStep(spec.name, step, spec, result))
        spec = result.spec
    return [*begun, *planned]


def observed_of(steps: Iterable[PlannedStep]) -> dict[str, tuple[str, ...]]:
    """Component -> the layers whose activation ranges have to be calibrated."""
    found = {
        step.component: observed_layers(step.planned.spec.config) for step in steps if step.step.kind == "quantize"
    }
    return {component: layers for component, layers in found.items() if layers}


def calibrated_of(steps: Iterable[PlannedStep]) -> dict[str, tuple[str, ...]]:
    """Component -> the layers of whose inputs statistics have to be gathered."""
    found: dict[str, tuple[str, ...]] = {}
    for step in steps:
        if step.planned.calibrated:
            found[step.component] = tuple(dict.fromkeys((*found.get(step.component, ()), *step.planned.calibrated)))
    return found


def _source_problems(planned: Sequence[PlannedStep], source: Source) -> list[str]:
    """What steps find in their way that lies in the pipeline rather than in the component."""
    return [
        f"components.{step.component}.{step.step.kind}.{problem}"
        for step in planned
        for problem in step.step.problems_with(source)
    ]


def _peak_bytes(steps: list[PlannedStep], source: Source) -> int:
    """Runtime and the largest working set: one tensor at a time, whatever the model's size."""
    packages = {package for step in steps for package in step.planned.requires}
    runtime = RUNTIME_BYTES + sum(RUNTIME_BYTES_OF.get(package, 0) for package in packages)
    working = runtime + max((_working_bytes(step, source) for step in steps), default=0)
    names = {*observed_of(steps), *calibrated_of(steps)}
    largest = max((4 * source.components[name].parameters for name in names), default=0)
    calibrating = int((1 + CALIBRATION_SHARE) * largest)
    if not names:
        return working
    moments = []
    for pruning in (True, False):  # each is calibrated in a walk of its own
        late = [step for step in steps if step.step.stage > Stage.FUSE]
        each = [step for step in late if (step.step.stage <= Stage.RECOVER) == pruning]
        before = {step.component: step.before for step in reversed(each)}
        moments += [_moments_bytes(before[name], layers) for name, layers in calibrated_of(each).items()]
    return max(working, RUNTIME_BYTES + CALIBRATION_BYTES + calibrating + max(moments, default=0))


def _working_bytes(step: PlannedStep, source: Source) -> int:
    """Bytes a step holds at once; one that trains holds the original component and the training libraries too."""
    if not step.planned.trains:
        return step.planned.working_bytes
    return step.planned.working_bytes + TRAINING_BYTES + 4 * source.components[step.component].parameters


def _moments_bytes(spec: ComponentSpec, layers: Iterable[str]) -> int:
    """Bytes of the blocks of second moments that are gathered of a component's layers."""
    shapes = [spec.tensors[f"{layer}.weight"].shape for layer in layers]
    widths = [(math.prod(shape[1:]), math.prod(shape[2:])) for shape in shapes]
    limit = fitting_limit(widths, Limits())
    return sum(4 * size**2 for columns, kernel in widths for size in block_sizes(columns, kernel, limit))
