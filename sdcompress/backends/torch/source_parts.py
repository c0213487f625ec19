"""Parts of a source's pipeline: one component, or everything but the components."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdcompress.backends.small_parts import explaining
from sdcompress.backends.torch.pruned_modules import rebuild
from sdcompress.errors import SourceError
from sdcompress.sources.empty_model import empty_model, tie_weights
from sdcompress.sources.pruned_config import is_quantized, pruning_of
from sdcompress.sources.source import Source, is_buffer
from sdcompress.sources.spec import ComponentSpec
from sdcompress.sources.tensor_names import name_in_model

_OPTIONAL = ("safety_checker", "image_encoder", "feature_extractor")


def open_without_models(source: Source) -> Any:
    """Return the source's pipeline without its models.

    Raises:
        SourceError: its other parts cannot be opened.
    """
    import diffusers
    from diffusers.utils import logging

    pipeline_class = getattr(diffusers, source.pipeline_class)
    takes = inspect.signature(pipeline_class).parameters
    absent = dict.fromkeys(name for name in (*source.components, *_OPTIONAL) if name in takes)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    what = f"{source.name}: its tokenizers or scheduler cannot be opened"
    try:
        with explaining(SourceError, what), _small_files(source) as folder:
            return pipeline_class.from_pretrained(
                str(folder), local_files_only=True, **absent, **pipeline_options(pipeline_class)
            )
    finally:
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _small_files(source: Source) -> Iterator[Path]:
    """Yield a folder with the source's tokenizers, scheduler and configs: its own, or one with replaced files."""
    if not source.changed_files:
        assert source.path is not None
        yield source.path
        return
    with tempfile.TemporaryDirectory(prefix="sdcompress-") as name:
        for relative in source.other_files:
            source.copy_file(relative, Path(name) / relative)
        yield Path(name)


def pipeline_options(pipeline_class: type) -> dict[str, bool]:
    """Return the options with which the pipeline class accepts that parts are missing."""
    takes = inspect.signature(pipeline_class).parameters
    return {name: False for name in ("add_watermarker", "requires_safety_checker") if name in takes}


def open_component(source: Source, component: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """Return the component as its class in `dtype` on `device`. It is read tensor by tensor, so it is in memory once.

    Raises:
        SourceError: it is quantized, or its files lack one of its tensors.
    """
    spec = source.components[component]
    if is_quantized(spec.config):
        raise SourceError(f"{source.name}: its {component} is quantized already; calibrate the original pipeline")

    model, read = empty_component(spec), source.reader(component)
    return fill_model(model, spec.tensors, read, device, f"{source.path}: its {component}", dtype)


def fill_model(
    model: Any,
    names: Iterable[str],
    read: Callable[[str], torch.Tensor],
    device: torch.device,
    what: str,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Fill the empty model with frozen parameters and return it.

    Args:
        names: the tensors, under their names in files.
        read: returns a tensor by its name.
        what: the component, for errors.

    Raises:
        SourceError: a parameter of the model is not among the tensors.
    """
    in_float32 = set(getattr(model, "_keep_in_fp32_modules", None) or ())  # from_pretrained does the same
    for name in names:
        place = None if is_buffer(name) else name_in_model(model, name)
        if place is not None:
            value = read(name).to(device, torch.float32 if in_float32 & {*name.split(".")} else dtype)
            owner, _, leaf = place.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    missing = [name for name, value in tie_weights(model).named_parameters() if value.is_meta]
    if missing:
        raise SourceError(f"{what} lacks {missing[0]}; download or save it again")
    return model.to(device).eval()


def empty_component(spec: ComponentSpec) -> Any:
    """Return the component as its class, pruned as its config says, with parameters on the meta device."""
    from accelerate import init_empty_weights

    model = empty_model(spec.library, spec.class_name, spec.config)
    with init_empty_weights(include_buffers=False):
        rebuild(model, pruning_of(spec.config))
    return model
