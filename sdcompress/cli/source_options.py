"""The options that say how a model is read, shared by the commands that take one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from sdcompress.cli.options_from_model import parameters_of, with_options

Variant = Annotated[str | None, typer.Option(help="Weight files of this variant, such as fp16.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id (or write org/name@REVISION).")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read .ckpt and .bin too, with an unpickler that runs no code.")
]
Like = Annotated[
    str | None,
    typer.Option(help="Of a checkpoint file: folder or catalog name of a pipeline with its configs and tokenizers."),
]
Prediction = Annotated[
    str | None, typer.Option(help="Of a checkpoint file that does not say it: epsilon or v_prediction.")
]


def make_source_options(
    variant: Variant = None,
    revision: Revision = None,
    allow_pickle: AllowPickle = False,
    like: Like = None,
    prediction: Prediction = None,
) -> dict[str, Any]:
    """The keywords of `open_source` that the options say."""
    return {
        "variant": variant, "revision": revision, "allow_pickle": allow_pickle, "like": like, "prediction": prediction,
    }  # fmt: skip


def with_source_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of `make_source_options` added; it gets them as its argument `source_options`."""
    return with_options(command, parameters_of(make_source_options), make_source_options, "source_options")
