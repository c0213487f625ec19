"""Options of the command line made from the fields of a pydantic model, so that each is spelled once.

An option's name is its field's, or `option` in the field's `json_schema_extra`. Type, limits, default and help are the
field's too.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel, ValidationError

from sdcompress.errors import UserError

NONE = "none"  # what an option of several words is given for none of them


def option_type(model: type[BaseModel], field: str) -> Any:
    """Return the annotation of a command's parameter that is the option of that field."""
    info = model.model_fields[field]
    least, most = (
        next((getattr(each, kind) for each in info.metadata if hasattr(each, kind)), None) for kind in ("ge", "le")
    )
    return Annotated[
        _plain_type(info.annotation), typer.Option(_option(model, field), help=info.description, min=least, max=most)
    ]


def with_model_options(command: Callable[..., None], model: type[BaseModel], argument: str) -> Callable[..., None]:
    """Return the command with the options of the model's fields added; it gets the model as `argument`."""
    options = {
        name: inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=(",".join(info.default) or NONE) if isinstance(info.default, tuple) else info.default,
            annotation=option_type(model, name),
        )
        for name, info in model.model_fields.items()
    }
    return with_options(command, options, lambda **given: _parse(model, given), argument)


def _parse(model: type[BaseModel], given: dict[str, Any]) -> BaseModel:
    """Return the model. Raises UserError for a value that a field does not allow; the message names its option."""
    values = dict(given)
    for name, value in given.items():
        if get_origin(model.model_fields[name].annotation) is tuple:
            words = tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))
            values[name] = () if words == (NONE,) else words
    try:
        return model(**values)
    except ValidationError as error:
        wrong = [(str(each["loc"][0]), each["msg"]) for each in error.errors()]
    raise UserError([f"{_option(model, name).split('/')[0]} {given[name]}: {message}" for name, message in wrong])


def with_options(
    command: Callable[..., None], options: dict[str, inspect.Parameter], make: Callable[..., Any], argument: str
) -> Callable[..., None]:
    """Return the command with more options; it gets what `make` returns for them as `argument`."""
    own = parameters_of(command)

    def wrapped(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in options}
        command(**given, **{argument: make(**chosen)})

    parameters = [each for each in (*own.values(), *options.values()) if each.name != argument]
    keyword_only = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return name -> parameter, its annotation evaluated; what is imported for type checkers alone is anything."""
    hints = get_type_hints(function, localns={"EvaluationSettings": Any}, include_extras=True)
    given = inspect.signature(function).parameters
    return {name: each.replace(annotation=hints[name]) for name, each in given.items()}


def _option(model: type[BaseModel], field: str) -> str:
    """Return the option's name; that of a flag which is on by default has what turns it off behind a slash."""
    info = model.model_fields[field]
    extra = info.json_schema_extra
    if isinstance(extra, dict) and "option" in extra:
        return str(extra["option"])
    name = field.replace("_", "-")
    return f"--{name}/--no-{name}" if info.default is True else f"--{name}"


def _plain_type(annotation: Any) -> Any:
    """Return the type as the command line reads it: words for names, a file's path for an object."""
    if get_origin(annotation) in (Union, types.UnionType):
        inner = next(each for each in get_args(annotation) if each is not type(None))
        return _plain_type(inner) | None
    if get_origin(annotation) in (Literal, tuple):
        return str
    return annotation if annotation in (str, int, float, bool, Path) else Path
