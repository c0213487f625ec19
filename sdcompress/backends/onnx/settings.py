"""How a component is exported: what a recipe's `export` step says, and what follows from it and from the spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sdcompress.families.architecture import OnnxPart
from sdcompress.files.safetensors_file import FLOAT_DTYPES
from sdcompress.sources.spec import ComponentSpec, TensorSpec

COMPUTE_DTYPES = {"F32": "float32", "F16": "float16"}


class StaticShapes(BaseModel):
    """The only sizes that a graph takes, for runtimes that need to know them, such as NPUs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    batch: int = Field(default=1, ge=1, description="pictures drawn at a time")
    height: int = Field(ge=8, description="height of a picture in pixels")
    width: int = Field(ge=8, description="width of a picture in pixels")
    sequence: int = Field(default=77, ge=1, description="tokens of a prompt")
    guidance: bool = Field(default=True, description="run both branches of classifier-free guidance in one batch")


class ExportSettings(BaseModel):
    """How a component becomes a graph. `export` takes these fields in a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    attention: Literal["fused", "standard"] = Field(
        default="fused", description="fused: ONNX Runtime's own operator; standard: operators that any runtime has"
    )
    static_shapes: StaticShapes | None = Field(
        default=None, description="the only sizes that the graph takes; any size if left out"
    )


def compute_dtype(spec: ComponentSpec) -> str:
    """`float32` or `float16`: what the component's unquantized tensors are in, and its graph computes in."""
    return COMPUTE_DTYPES[next(tensor.dtype for name, tensor in spec.tensors.items() if computes(name, tensor))]


def part_sizes(shapes: StaticShapes | None, part: OnnxPart, vae_scale: int) -> dict[str, int]:
    """Axis -> size of the part's own tensors; empty when the graph is to take any size."""
    if shapes is None:
        return {}
    in_pixels = part.kind in ("vae_encoder", "safety_checker")
    scale = 1 if in_pixels else vae_scale
    height, width = shapes.height // scale, shapes.width // scale
    batch = shapes.batch * (2 if part.kind in ("unet", "controlnet", "transformer") and shapes.guidance else 1)
    return {"batch": batch, "height": height, "width": width, "sequence": shapes.sequence,
            "patches": (height // 2) * (width // 2)}  # fmt: skip


def quantized_layers(config: Mapping[str, object]) -> dict[str, str]:
    """Layer -> format label of the quantize step before this one."""
    quantization = config.get("quantization_config")
    return dict(quantization["layers"]) if isinstance(quantization, Mapping) else {}


def observed_layers(config: Mapping[str, object]) -> tuple[str, ...]:
    """The layers whose activations are quantized with calibrated ranges."""
    quantization = config.get("quantization_config")
    return tuple(quantization.get("activations", ())) if isinstance(quantization, Mapping) else ()


def computes(name: str, tensor: TensorSpec) -> bool:
    return tensor.dtype in FLOAT_DTYPES and not name.endswith(".scale")
