"""A pipeline's scheduler as a part that can be replaced: its config, and another class made from it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.errors import UserError, nearest
from sdcompress.sources.source import component_entries
from sdcompress.sources.spec import ComponentSpec

if TYPE_CHECKING:
    from sdcompress.sources.source import Source

SCHEDULER = "scheduler"  # its name in a pipeline, and in a recipe
SCHEDULER_FILE = "scheduler_config.json"
_USED_BY_PIPELINES = ("set_timesteps", "step", "order")
_USED_WITH_NOISE = ("scale_model_input", "init_noise_sigma")  # where the model predicts noise or velocity, no flow


def scheduler_spec(source: Source) -> ComponentSpec | None:
    """The source's scheduler as a component without tensors; None where it has none or, in the catalog, no config."""
    file = Path(SCHEDULER) / SCHEDULER_FILE
    entry = component_entries(source.model_index).get(SCHEDULER)
    if entry is None or file not in source.other_files:
        return None
    return ComponentSpec(SCHEDULER, *entry, json.loads(source.read_file(file)), {})


def make_scheduler(
    current: ComponentSpec, class_name: str | None, config: Mapping[str, Any], base: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The config, class and all, of a scheduler of class `class_name` (the current one's if None).

    It is what diffusers' `class.from_config(base, **config)` gives, `base` being the current scheduler's config unless
    one is given. Raises UserError, beginning with a field's name, for what that class cannot be or do.
    """
    import diffusers
    from diffusers import SchedulerMixin

    known = [name for name in dir(diffusers) if name.endswith("Scheduler") and "Flax" not in name]
    name = class_name or current.class_name
    made: Any = getattr(diffusers, name) if name in known else None
    if made is None or not issubclass(made, SchedulerMixin):
        raise UserError(f"class_name: diffusers has no scheduler {name!r}; {nearest(name, known)}")
    parameters = sorted(set(inspect.signature(made).parameters) - {"kwargs"})
    unknown = [f"config.{key}: {name} has no such parameter; {nearest(key, parameters)}" for key in config
               if key not in parameters]  # fmt: skip
    if unknown:
        raise UserError(unknown)
    try:
        if base is None:
            # Opened first, so that its defaults do not override the other class's, as in a pipeline.
            base = getattr(diffusers, current.class_name).from_config(dict(current.config)).config
        scheduler = made.from_config(base, **config)
    except (ValueError, NotImplementedError, TypeError, ImportError) as error:
        raise UserError(f"config: {name} refuses it: {error}") from None
    _check_kind(scheduler, current)
    return dict(json.loads(scheduler.to_json_string()))


def _check_kind(scheduler: Any, current: ComponentSpec) -> None:
    """UserError unless the scheduler does for pipelines what the current one does."""
    name = type(scheduler).__name__
    flows = "FlowMatch" in current.class_name or bool(current.config.get("use_flow_sigmas"))
    if flows != ("FlowMatch" in name or bool(scheduler.config.get("use_flow_sigmas"))):
        what = "the flow" if flows else "noise or velocity"
        raise UserError(
            f"class_name: {name} does not fit a model that predicts {what}, as {current.class_name} shows this one does"
        )
    missing = [each for each in (*_USED_BY_PIPELINES, *(() if flows else _USED_WITH_NOISE))
               if not hasattr(scheduler, each)]  # fmt: skip
    if missing:
        raise UserError(f"class_name: {name} has no {missing[0]}, which pipelines of this kind use; choose another")
