"""Tracing a component's graph without its weights: torch.export on fake tensors, then the dynamo ONNX exporter.

Parameters never hold memory during tracing. In the graph each is an initializer with its name in the component's file.
Its values are attached when the file is written (see `weights`).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sdcompress.backends.onnx.modules import wrap
from sdcompress.backends.torch.source_parts import empty_component
from sdcompress.errors import InternalError
from sdcompress.families.architecture import OnnxInput, OnnxPart
from sdcompress.families.onnx_parts import traced_shape
from sdcompress.sources.spec import ComponentSpec
from sdcompress.sources.tensor_names import name_in_model

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 23
# Each axis has a size of its own, so that the exporter can tell equal dimensions; multiples of 8 suit UNet levels.
_TRACED_SIZE = {"batch": 2, "height": 24, "width": 40, "sequence": 11, "patches": 35}


def trace(spec: ComponentSpec, part: OnnxPart, inputs: tuple[OnnxInput, ...], dtype: str) -> ir.Model:
    """Return the graph of a part of the component at opset 23; its parameters are initializers without values.

    Args:
        dtype: float32 or float16.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = empty_component(spec).eval()
    aliases = _aliases(model)
    traced = {name: f"model.{name_in_model(model, name)}" for name in spec.tensors if part.holds(name)}
    names = {alias: name for name, first in traced.items() for alias in aliases.get(first, (first,))}
    compute = getattr(torch, dtype)
    # Parameters and buffers in the file become fake. Other buffers stay real: the graph holds their values.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        _fake_weights(model, mode, compute, frozenset(names))
        example = {each.name: _example(each, compute) for each in inputs}
        with _quiet():
            exported = torch.export.export(
                wrap(part, model), args=(), kwargs=example, dynamic_shapes=_dynamic_shapes(inputs), strict=False
            )
    with _quiet():
        program = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            input_names=[each.name for each in inputs],
            output_names=list(part.outputs),
            optimize=False,
            verbose=False,
        )
    assert program is not None
    _name_parameters(program.model, names)
    _name_axes(program.model, inputs)
    return program.model


def _aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return parameter -> all its names; the exporter may choose another than files have (T5's `shared`)."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(f"model.{name}")
    return {name: tuple(same) for same in names.values() for name in same}


def _fake_weights(model: nn.Module, mode: Any, dtype: torch.dtype, stored: frozenset[str]) -> None:
    """Replace all parameters, and the buffers in the file, by fake tensors. Other buffers stay."""
    for module_name, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = torch.empty(parameter.shape, dtype=dtype if parameter.is_floating_point() else parameter.dtype)
            module._parameters[name] = nn.Parameter(fake, requires_grad=False)
        for name, buffer in list(module.named_buffers(recurse=False)):
            full = f"model.{module_name}.{name}" if module_name else f"model.{name}"
            if full in stored:
                fake = torch.empty(buffer.shape, dtype=dtype if buffer.is_floating_point() else buffer.dtype)
                module._buffers[name] = fake


def _example(each: OnnxInput, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(traced_shape(each, _TRACED_SIZE), dtype=torch.int64 if each.dtype == "int64" else dtype)


def _dynamic_shapes(inputs: tuple[OnnxInput, ...]) -> dict[str, Any]:
    dynamic = torch.export.Dim.DYNAMIC
    return {
        each.name: {axis: dynamic for axis, size in enumerate(each.shape) if isinstance(size, str)} for each in inputs
    }


def _name_parameters(model: ir.Model, names: Mapping[str, str]) -> None:
    """Give the initializers their names in the component's file, and remove their fake values."""
    initializers = model.graph.initializers
    for traced, name in names.items():
        value = initializers.get(traced)
        if value is not None:  # the computation may not use a stored tensor (position_ids)
            value.const_value = None
            value.name = name
    lost = [name for name in initializers if name.startswith("model.") and initializers[name].const_value is None]
    if lost:
        raise InternalError(f"{lost[0]}: is a parameter of the exported graph and not in the component's file")


def _name_axes(model: ir.Model, inputs: tuple[OnnxInput, ...]) -> None:
    """Give the dynamic dimensions of the inputs, and equal ones elsewhere, the names of the axes."""
    import onnx_ir as ir

    renamed: dict[str, str] = {}
    for value, each in zip(model.graph.inputs, inputs, strict=True):
        assert value.shape is not None
        for axis, size in enumerate(each.shape):
            if isinstance(size, str):
                renamed.setdefault(str(value.shape[axis]), size)
    for value in _values(model):
        if value.shape is not None:
            value.shape = ir.Shape([renamed.get(str(size), size) if not isinstance(size, int) else size
                                    for size in value.shape])  # fmt: skip


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph:
        yield from node.outputs


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's warnings and logs while in the context; its errors are exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
