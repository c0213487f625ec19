"""The steps that recipes can name, and what they take."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from pydantic import BaseModel

from sdcompress.planning.steps import Step
from sdcompress.plugins import find_classes


@dataclass(frozen=True)
class ParameterDescription:
    """One parameter of a step.

    Args:
        name: dotted for parameters of an entry, such as `overrides.layers`.
        values: the type or the choices, such as `integer` or `float32 | float16`.
        default: as YAML; None where the parameter is required.
    """

    name: str
    values: str
    default: str | None
    description: str


@dataclass(frozen=True)
class StepDescription:
    """One step: its kind, what it does, an example as YAML, and its parameters."""

    kind: str
    summary: str
    example: str
    parameters: tuple[ParameterDescription, ...]


@cache
def known_steps() -> dict[str, type[Step]]:
    """Return step kind -> class, for every module of `sdcompress/planning/steps/`."""
    return find_classes("sdcompress.planning.steps", Step, "kind")  # type: ignore[type-abstract]


def describe_steps() -> tuple[StepDescription, ...]:
    """Return all steps in the order in which they stand in a recipe, as their classes describe them.

    Examples:
        >>> cast = next(step for step in describe_steps() if step.kind == "cast")
        >>> cast.example, [parameter.name for parameter in cast.parameters]
        ('cast: {dtype: float16}', ['dtype'])
    """
    steps = sorted(known_steps().values(), key=lambda step: (step.stage, step.kind))
    return tuple(_describe(step) for step in steps)


def _describe(step: type[Step]) -> StepDescription:
    text, _, example = inspect.getdoc(step).partition("Examples:")  # type: ignore[union-attr]
    return StepDescription(step.kind, text.strip(), example.strip(), tuple(_parameters(step)))


def _parameters(model: type[BaseModel], before: str = "") -> Iterator[ParameterDescription]:
    for name, field in model.model_fields.items():
        default = None if field.is_required() else _as_yaml(field.get_default(call_default_factory=True))
        values = _type_name(field.annotation)
        yield ParameterDescription(f"{before}{name}", values, default, field.description or "")
        for inner in _models_in(field.annotation):
            yield from _parameters(inner, f"{before}{name}.")


def _as_yaml(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True).replace("\n...", "").strip()


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models_in(inner)


def _type_name(annotation: Any) -> str:
    """Return the type in the words of YAML; None is left out, for the default tells it."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_name(each) for each in inner if each is not type(None))
    if origin is typing.Annotated:
        return _type_name(inner[0])
    if origin is tuple:
        return f"list of {_type_name(inner[0])}"
    return {str: "text", int: "integer", float: "number", bool: "true | false"}.get(annotation, "mapping")
