"""The contenders by name: what runs them, what they are made from, and which race unless others are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sdcompress.errors import UserError

BASELINE = "optimum"
REFERENCE = "torch-fp32"
Family = Literal["torch", "onnxruntime", "openvino", "sdcompress"]


@dataclass(frozen=True)
class Contender:
    """One way of running a component. `module` has `make(job, **options)`, where `makes` says so, and `load`.

    calibrated: its making depends on the recorded inputs.
    """

    name: str
    label: str
    family: Family
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    makes: Literal["nothing", "component", "pipeline"] = "nothing"
    needs: tuple[str, ...] = ()
    by_default: bool = True
    calibrated: bool = False
    in_component: bool = True
    in_pipeline: bool = False


def _ours(name: str, *, by_default: bool = True, calibrated: bool = False) -> Contender:
    return Contender(
        name,
        f"sdcompress {name}",
        "sdcompress",
        "onnx_runtime",
        {"recipe": name, "calibrated": calibrated},
        "pipeline",
        by_default=by_default,
        calibrated=calibrated,
        in_pipeline=True,
    )


_ALL = (
    Contender("torch-fp32", "torch, float32", "torch", "torch_modules", {"dtype": "float32"}, in_pipeline=True),
    Contender(
        "torch-bf16",
        "torch, bfloat16, channels last",
        "torch",
        "torch_modules",
        {"dtype": "bfloat16"},
        in_pipeline=True,
    ),
    Contender(
        "torch-compile-fp32",
        "torch.compile, float32",
        "torch",
        "torch_modules",
        {"dtype": "float32", "compiled": True},
        by_default=False,
    ),
    Contender(
        "torch-compile-bf16",
        "torch.compile, bfloat16",
        "torch",
        "torch_modules",
        {"dtype": "bfloat16", "compiled": True},
    ),
    Contender(
        "optimum",
        "optimum's export, float32",
        "onnxruntime",
        "onnx_runtime",
        {"recipe": None},
        "pipeline",
        in_pipeline=True,
    ),
    Contender(
        "ort-quantize-static",
        "ONNX Runtime quantize_static, int8",
        "onnxruntime",
        "quantize_static",
        {},
        "component",
        ("optimum",),
        calibrated=True,
    ),
    Contender(
        "ort-quantize-static-layers",
        "quantize_static, int8, Conv MatMul Gemm",
        "onnxruntime",
        "quantize_static",
        {"operators": ["Conv", "MatMul", "Gemm"]},
        "component",
        ("optimum",),
        calibrated=True,
        by_default=False,
    ),
    Contender(
        "openvino-fp32",
        "OpenVINO, float32",
        "openvino",
        "openvino_models",
        {"how": "convert", "precision": "f32"},
        "component",
        ("optimum",),
    ),
    Contender(
        "openvino-bf16",
        "OpenVINO, bfloat16",
        "openvino",
        "openvino_models",
        {"how": None, "precision": "bf16", "files_of": "openvino-fp32"},
        needs=("optimum", "openvino-fp32"),
    ),
    Contender(
        "openvino-int8",
        "OpenVINO, NNCF int8",
        "openvino",
        "openvino_models",
        {"how": "quantize", "precision": None},
        "component",
        ("optimum", "openvino-fp32"),
        calibrated=True,
    ),
    Contender(
        "openvino-hybrid",
        "OpenVINO, NNCF hybrid int8",
        "openvino",
        "openvino_models",
        {"how": "hybrid", "precision": None},
        "component",
        ("optimum", "openvino-fp32"),
        calibrated=True,
    ),
    _ours("onnx-fp32"),
    _ours("onnx-fp16", by_default=False),
    _ours("onnx-int8", calibrated=True),
    _ours("onnx-int4", calibrated=True),
    _ours("onnx-mixed", by_default=False, calibrated=True),
    Contender(
        "onnx-int8-standard",
        "sdcompress onnx-int8, attention: standard",
        "sdcompress",
        "onnx_runtime",
        {"recipe": "onnx-int8", "calibrated": True, "unet_last": [{"export": {"attention": "standard"}}]},
        "pipeline",
        by_default=False,
        calibrated=True,
    ),
    Contender(
        "onnx-int8-openvino",
        "sdcompress onnx-int8, attention: standard, on OpenVINO",
        "openvino",
        "openvino_models",
        {"how": "onnx", "precision": None, "files_of": "onnx-int8-standard"},
        needs=("onnx-int8-standard",),
    ),
    Contender(
        "onnx-fp32-pruned",
        "sdcompress onnx-fp32, pruned by bk-sdm-base",
        "sdcompress",
        "onnx_runtime",
        {"recipe": "onnx-fp32", "unet_first": [{"prune": {"pattern": "bk-sdm-base"}}]},
        "pipeline",
        by_default=False,
    ),
    # Pictures only: of one component alone nothing is left to be let go.
    Contender(
        "onnx-int8-low-memory",
        "sdcompress onnx-int8, low memory",
        "sdcompress",
        "onnx_runtime",
        {"recipe": "onnx-int8", "low_memory": True},
        needs=("onnx-int8",),
        by_default=False,
        in_component=False,
        in_pipeline=True,
    ),
)
CONTENDERS: dict[str, Contender] = {contender.name: contender for contender in _ALL}


def choose(names: Iterable[str] | None, pipelines: bool = False) -> list[Contender]:
    """The contenders of these names, or those that race by default; baseline and reference always.

    pipelines: only those that can draw whole pictures. Raises UserError for a name that is none of them.
    """
    there = {name: one for name, one in CONTENDERS.items() if (one.in_pipeline if pipelines else one.in_component)}
    wanted = [name for name, one in there.items() if one.by_default] if names is None else list(names)
    for name in wanted:
        if name not in there:
            raise UserError(f"--contenders: {name} is none of {', '.join(there)}")
    return [one for name, one in there.items() if name in (*wanted, BASELINE, REFERENCE)]


def with_needs(contenders: Iterable[Contender]) -> list[Contender]:
    """The contenders and all that they are made from, each after what it needs."""
    wanted = {name for one in contenders for name in (one.name, *one.needs)}
    return [one for name, one in CONTENDERS.items() if name in wanted]
