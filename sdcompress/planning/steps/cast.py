"""cast: store a component's floating-point tensors in another precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sdcompress.backends.component import Component
from sdcompress.errors import UserError
from sdcompress.families.float16_overflow import WHY_FRAGILE, overflows_float16
from sdcompress.files.safetensors_file import FLOAT_DTYPES
from sdcompress.planning.steps import Planned, Stage, Step
from sdcompress.quant.format import overflows
from sdcompress.sources.spec import ComponentSpec, TensorSpec

if TYPE_CHECKING:
    import torch

SAFETENSORS_NAME = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class Cast(Step):
    """Store floating-point tensors in another precision; integers stay.

    A value that float16 cannot hold is an error when the step is applied.

    Examples:
        cast: {dtype: float16}
    """

    kind = "cast"
    stage = Stage.CAST
    dtype: Literal["float32", "float16", "bfloat16"] = Field(description="the precision to store")

    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        dtype, notes = SAFETENSORS_NAME[self.dtype], []
        # A torch pipeline moves such a VAE to float32 while it decodes; a graph stays in what it was exported in.
        if target == "onnx" and self.dtype == "float16" and overflows_float16(spec):
            dtype = SAFETENSORS_NAME["float32"]
            notes.append(f"in float32, not float16: {WHY_FRAGILE}")
        changed = [name for name, tensor in spec.tensors.items() if _casts(tensor, dtype)]
        tensors = {
            name: TensorSpec(tensor.shape, dtype, tensor.parameters) if name in changed else tensor
            for name, tensor in spec.tensors.items()
        }
        largest = max((spec.tensors[name].size_bytes + tensors[name].size_bytes for name in changed), default=0)
        return Planned(spec.replace(tensors=tensors), notes=tuple(notes), working_bytes=largest)

    def apply(self, component: Component, planned: Planned) -> Component:
        from sdcompress.files.torch_tensors import TORCH_DTYPE

        def read(name: str) -> torch.Tensor:
            tensor = component.read(name)
            planned_as = planned.spec.tensors[name].dtype
            if not _casts(component.spec.tensors[name], planned_as):
                return tensor
            result = tensor.to(TORCH_DTYPE[planned_as])
            if overflows(result, tensor):
                raise UserError(
                    f"{component.spec.name}.{name}: holds {float(tensor.abs().max()):.3g}, too large for {self.dtype}; "
                    f"cast this component to bfloat16 or leave it as it is"
                )
            return result

        return component.becomes(planned.spec, read)


def _casts(tensor: TensorSpec, dtype: str) -> bool:
    return tensor.dtype in FLOAT_DTYPES and tensor.dtype != dtype
