"""A pipeline's scheduler: its config, and another scheduler made from it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.errors import Problem, ProblemList, UserError, nearest
from sdcompress.sources.source import component_entries
from sdcompress.sources.spec import ComponentSpec

if TYPE_CHECKING:
    from sdcompress.sources.source import Source

SCHEDULER = "scheduler"  # its name in a pipeline, and in a recipe
SCHEDULER_FILE = "scheduler_config.json"
_USED_BY_PIPELINES = ("set_timesteps", "step", "order")
_USED_WITH_NOISE = ("scale_model_input", "init_noise_sigma")  # unless the model predicts a flow


def scheduler_spec(source: Source) -> ComponentSpec | None:
    """Return the source's scheduler as a component without tensors; None where it or its config is missing."""
    file = Path(SCHEDULER) / SCHEDULER_FILE
    entry = component_entries(source.model_index).get(SCHEDULER)
    if entry is None or file not in source.other_files:
        return None
    return ComponentSpec(SCHEDULER, *entry, json.loads(source.read_file(file)), {})


def make_scheduler(
    current: ComponentSpec, class_name: str | None, config: Mapping[str, Any], base: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the config of the scheduler that diffusers' `class.from_config(base, **config)` gives, its class included.

    Args:
        class_name: class of the new scheduler; the current one's if None.
        base: the config that it is made from; the current scheduler's if None.

    Raises:
        UserError: diffusers has no such class, or the class does not take the config or does not fit the pipeline.
    """
    import diffusers
    from diffusers import SchedulerMixin

    known = [name for name in dir(diffusers) if name.endswith("Scheduler") and "Flax" not in name]
    name = class_name or current.class_name
    made: Any = getattr(diffusers, name) if name in known else None
    if made is None or not issubclass(made, SchedulerMixin):
        raise UserError(Problem("class_name", f"diffusers has no scheduler {name!r}; {nearest(name, known)}"))
    parameters = sorted(set(inspect.signature(made).parameters) - {"kwargs"})
    ProblemList(
        Problem(f"config.{key}", f"{name} has no such parameter; {nearest(key, parameters)}")
        for key in config
        if key not in parameters
    ).raise_any()
    try:
        if base is None:
            # Opened first, so that its defaults do not override the other class's, as in a pipeline.
            base = getattr(diffusers, current.class_name).from_config(dict(current.config)).config
        scheduler = made.from_config(base, **config)
    except (ValueError, NotImplementedError, TypeError, ImportError) as error:
        raise UserError(Problem("config", f"{name} refuses it: {error}")) from None
    _check_kind(scheduler, current)
    return dict(json.loads(scheduler.to_json_string()))


def _check_kind(scheduler: Any, current: ComponentSpec) -> None:
    """Raise UserError unless pipelines of this kind can use the scheduler."""
    name = type(scheduler).__name__
    flows = "FlowMatch" in current.class_name or bool(current.config.get("use_flow_sigmas"))
    if flows != ("FlowMatch" in name or bool(scheduler.config.get("use_flow_sigmas"))):
        predicted = "the flow" if flows else "noise or velocity"
        what = f"{name} does not fit a model that predicts {predicted}, as this one does (its scheduler is a"
        raise UserError(Problem("class_name", f"{what} {current.class_name})"))
    missing = [each for each in (*_USED_BY_PIPELINES, *(() if flows else _USED_WITH_NOISE))
               if not hasattr(scheduler, each)]  # fmt: skip
    if missing:
        what = f"{name} has no {missing[0]}, which pipelines of this kind use; choose another"
        raise UserError(Problem("class_name", what))
