"""export: how a component becomes an ONNX graph, where that differs from the defaults."""

from __future__ import annotations

from sdcompress.backends.component import Component
from sdcompress.backends.onnx.settings import COMPUTE_DTYPES, ExportSettings, compute_dtype, computes, observed_layers
from sdcompress.errors import Problem, UserError
from sdcompress.families.described.clip import TEXT_ENCODERS, text_config
from sdcompress.families.float16_overflow import WHY_FRAGILE, overflows_float16
from sdcompress.families.onnx_parts import onnx_parts
from sdcompress.files.safetensors_file import FLOAT_DTYPES
from sdcompress.planning.steps import Planned, Stage, Step
from sdcompress.sources.spec import ComponentSpec, TensorSpec


class Export(ExportSettings, Step):
    """Export a component to ONNX in another way than by default. With `target: onnx` all components are exported.

    Examples:
        export: {attention: standard}
    """

    kind = "export"
    stage = Stage.EXPORT

    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        if target != "onnx":
            raise UserError("an artifact for target: torch is not exported; leave this step out, or use target: onnx")
        parts = onnx_parts(spec)
        self._check_shapes(spec)
        dtypes = {tensor.dtype for name, tensor in spec.tensors.items() if computes(name, tensor)}
        if len(dtypes) != 1 or not dtypes <= set(COMPUTE_DTYPES):
            what = f"{spec.name} has tensors in {', '.join(sorted(dtypes))}"
            raise UserError(Problem("dtype", f"{what}; put `cast: {{dtype: float32}}` or float16 first"))
        if dtypes == {"F16"} and overflows_float16(spec):
            what = f"{spec.name} would compute in float16; put `cast: {{dtype: float32}}` first: {WHY_FRAGILE}"
            raise UserError(Problem("dtype", what))
        tensors = {name: _stored(name, tensor, spec) for name, tensor in spec.tensors.items() if _kept(tensor)}
        for layer in observed_layers(spec.config):
            # Integer convolutions add their bias as int32, in steps of its own per channel.
            bias = tensors.get(f"{layer}.bias")
            if bias is not None and len(spec.tensors[f"{layer}.codes"].shape) == 4 and not _becomes_linear(layer, spec):
                tensors[f"{layer}.bias"] = TensorSpec(bias.shape, "I32", bias.parameters)
                tensors[f"{layer}.bias_scale"] = TensorSpec(bias.shape, "F32", 0)
        config = {name: value for name, value in spec.config.items() if name != "quantization_config"}
        largest = max((tensor.size_bytes for tensor in tensors.values()), default=0)
        notes = tuple(f"{part.folder}/model.onnx" for part in parts)
        return Planned(
            spec.replace(tensors=tensors, config=config), notes=notes, working_bytes=2 * largest,
            requires=frozenset({"onnx", "onnxscript", "onnxruntime"}),
        )  # fmt: skip

    def _check_shapes(self, spec: ComponentSpec) -> None:
        """Raise UserError for sizes that the component cannot take, though a graph could be written for them."""
        shapes = self.static_shapes
        if shapes is None:
            return
        blocks = len(spec.config.get("block_out_channels", ()))
        if spec.class_name.startswith(("UNet", "Autoencoder")) and blocks:
            # A UNet halves its latents between its blocks, and a latent is 8 pixels wide, or fewer in small VAEs.
            unit = 2 ** (blocks - 1) * (8 if spec.class_name.startswith("UNet") else 1)
            for edge in ("height", "width"):
                size = getattr(shapes, edge)
                if size % unit:
                    what = f"{size} is no multiple of {unit}, which {spec.name}'s halvings need"
                    usable = f"{max(unit, size // unit * unit)} or {(size // unit + 1) * unit}"
                    raise UserError(Problem(f"static_shapes.{edge}", f"{what}; use {usable}"))
        longest = text_config(spec)["max_position_embeddings"] if spec.class_name in TEXT_ENCODERS else None
        if longest is not None and shapes.sequence > longest:
            what = f"{shapes.sequence} tokens asked for, and {spec.name} reads at most {longest}"
            raise UserError(Problem("static_shapes.sequence", what))

    def apply(self, component: Component, planned: Planned) -> Component:
        """Return the component as it is; `backends.onnx.export` writes its graphs."""
        return component


def _becomes_linear(layer: str, spec: ComponentSpec) -> bool:
    """Return whether the graph pass `projection to tokens` makes a linear layer of this convolution."""
    return spec.class_name.startswith("UNet") and layer.rpartition(".")[2] in ("proj_in", "proj_out")


def _kept(tensor: TensorSpec) -> bool:
    """Return whether the tensor is a weight of the graph; integer buffers (position ids) become constants."""
    return tensor.dtype in FLOAT_DTYPES or tensor.dtype in ("I8", "U8", "I4", "U4")


def _stored(name: str, tensor: TensorSpec, spec: ComponentSpec) -> TensorSpec:
    """Return the tensor as the graph stores it: scales per channel in the compute dtype, the rest as it is."""
    if name.endswith(".scale") and len(tensor.shape) == 1 and f"{name.removesuffix('scale')}codes" in spec.tensors:
        return TensorSpec(tensor.shape, next(k for k, v in COMPUTE_DTYPES.items() if v == compute_dtype(spec)), 0)
    return tensor
