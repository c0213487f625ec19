"""What a component becomes in ONNX: its graphs, with their inputs and outputs.

Folders and names are those that optimum's exporter writes, so that its ONNX Runtime pipelines open the result.
"""

from __future__ import annotations

from collections.abc import Mapping

from sdcompress.errors import UserError
from sdcompress.families.architecture import OnnxInput, OnnxPart
from sdcompress.families.registry import architecture_of, known_architectures
from sdcompress.sources.spec import ComponentSpec


def onnx_parts(spec: ComponentSpec) -> tuple[OnnxPart, ...]:
    """Return the graphs of a component.

    Raises:
        UserError: nothing is known about how to export the component's class.
    """
    parts_of = architecture_of(spec.class_name).onnx_parts
    if parts_of is None:
        exportable = sorted(name for name, one in known_architectures().items() if one.onnx_parts)
        raise UserError(
            f"{spec.name}: a {spec.class_name} cannot be exported to ONNX yet; use target: torch "
            f"(exportable: {', '.join(exportable)})"
        )
    return parts_of(spec, spec.pipeline_class)


def vae_scale(components: Mapping[str, ComponentSpec]) -> int:
    """Return the pixels per latent along an edge: the pipeline's VAE halves the size between its blocks."""
    config = components["vae"].config if "vae" in components else {}
    blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    return 2 ** (len(blocks) - 1) if blocks else 8


def fix_axes(part: OnnxPart, sizes: Mapping[str, int]) -> tuple[OnnxInput, ...]:
    """Return the part's inputs with their named dimensions fixed to `sizes`, counted in the part's own tensors."""
    if not sizes:
        return part.inputs
    return tuple(OnnxInput(each.name, traced_shape(each, sizes), each.dtype) for each in part.inputs)


def traced_shape(each: OnnxInput, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the input's shape for these sizes of its named dimensions.

    Examples:
        >>> from sdcompress.families.architecture import OnnxInput
        >>> traced_shape(OnnxInput("x", ("batch", 4, "height/4", "width*8")), {"batch": 2, "height": 9, "width": 5})
        (2, 4, 3, 40)
    """
    return tuple(_axis_size(size, sizes) if isinstance(size, str) else size for size in each.shape)


def _axis_size(axis: str, sizes: Mapping[str, int]) -> int:
    """Return the size of an axis; a division rounds up, as convolutions do."""
    name, operator, factor = axis.partition("/" if "/" in axis else "*")
    if not operator:
        return sizes[name]
    return -(-sizes[name] // int(factor)) if operator == "/" else sizes[name] * int(factor)
