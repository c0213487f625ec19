"""`Source`: a pipeline as configs and tensor specs, without its weights."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdcompress.files.safetensors_file import TensorRange
from sdcompress.sources.spec import ComponentSpec

if TYPE_CHECKING:
    import torch

ASSETS = Path(__file__).parents[1] / "assets"
BUILT_IN = ("tiny-sd",)

DENOISERS = ("unet", "transformer")
SAFETY_CHECKERS = frozenset({"safety_checker"})

Kind = Literal["built-in", "catalog", "folder", "hub", "single-file"]
Format = Literal["safetensors", "onnx", "openvino"]

# Tensors in files that are no parameters of the module.
_BUFFERS = re.compile(r"(^|\.)(position_ids|pos_embed\.pos_embed|num_batches_tracked|running_mean|running_var)$")


@dataclass(frozen=True)
class Source:
    """A pipeline as it is before compression. `open_source` makes one. It holds no weights.

    Attributes:
        name: the name by which the pipeline was opened.
        kind: what the name was: `built-in`, `catalog`, `folder`, `hub` or `single-file`.
        model_index: the content of model_index.json.
        components: component -> class, config and the spec of each tensor, of all components with weights.
        path: the diffusers folder of the pipeline; None while it is not on this machine.
        hub_id: the repository on the Hugging Face Hub (`org/name`), if there is one.
        tensors: component -> tensor -> where it is stored. Empty for ONNX and OpenVINO, and without a `path`.
        other_files: files without weights (configs, tokenizers, licences), relative to `path`.
        notes: remarks for the user.
        format: format of the weights: `safetensors`, `onnx` or `openvino`.
        readers: component -> function that returns a tensor by name, where a step computes the tensors.
        changed_files: those of `other_files` whose content differs from the file's below `path` -> content.
        onnx_files: files with the graphs and weights of an ONNX or OpenVINO folder.
        options: options of `open_source` that are needed to open the same pipeline again.

    Examples:
        >>> from sdcompress import open_source
        >>> source = open_source("sd15")
        >>> f"{source.components['unet'].parameters:,}"
        '859,520,964'
    """

    name: str
    kind: Kind
    model_index: Mapping[str, Any]
    components: Mapping[str, ComponentSpec]
    path: Path | None = None
    hub_id: str | None = None
    tensors: Mapping[str, Mapping[str, TensorRange]] = field(default_factory=dict)
    other_files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    format: Format = "safetensors"
    readers: Mapping[str, Callable[[str], torch.Tensor]] = field(default_factory=dict)
    changed_files: Mapping[Path, bytes] = field(default_factory=dict)
    onnx_files: tuple[Path, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def given_options(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        return {name: value for name, value in sorted(self.options.items()) if value not in (None, False)}

    @property
    def pipeline_class(self) -> str:
        """Name of the pipeline's class in diffusers."""
        return pipeline_class_of(self.model_index)

    @property
    def parameters(self) -> int:
        """Number of parameters of all components."""
        return sum(component.parameters for component in self.components.values())

    @property
    def weights_bytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(component.weights_bytes for component in self.components.values())

    @property
    def size_bytes(self) -> int:
        """Size of the pipeline on disk in bytes: whole weight files, configs and tokenizers."""
        if self.path is None:
            return self.weights_bytes
        weights = {where.file for ranges in self.tensors.values() for where in ranges.values()} | {*self.onnx_files}
        others = {self.path / relative for relative in self.other_files}
        return sum(file.stat().st_size for file in weights | others)

    def reader(self, component: str) -> Callable[[str], torch.Tensor]:
        """Return a function that returns one of the component's tensors by name: read from its file, or computed."""
        if component in self.readers:
            return self.readers[component]
        ranges = self.tensors[component]

        def read(tensor: str) -> torch.Tensor:
            from sdcompress.files.torch_tensors import read_tensor

            return read_tensor(ranges[tensor])

        return read

    def read_file(self, relative: Path) -> bytes:
        """Return the content of one of `other_files`."""
        if relative in self.changed_files:
            return self.changed_files[relative]
        assert self.path is not None
        return (self.path / relative).read_bytes()

    def copy_file(self, relative: Path, target: Path) -> None:
        """Write one of `other_files` to `target`. Missing folders are made."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if relative in self.changed_files:
            target.write_bytes(self.changed_files[relative])
        else:
            assert self.path is not None
            shutil.copyfile(self.path / relative, target)

    def file_bytes(self, relative: Path) -> int:
        """Return the size in bytes of one of `other_files`."""
        if relative in self.changed_files:
            return len(self.changed_files[relative])
        assert self.path is not None
        return (self.path / relative).stat().st_size


def pipeline_class_of(model_index: Mapping[str, Any]) -> str:
    """Return the diffusers class that a model_index.json names."""
    return str(model_index.get("_class_name", "DiffusionPipeline"))


def component_entries(model_index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return component -> (library, class) of a model_index.json, tokenizers and schedulers too, absent ones not.

    Examples:
        >>> component_entries({"unet": ["diffusers", "UNet2DConditionModel"], "safety_checker": [None, None]})
        {'unet': ('diffusers', 'UNet2DConditionModel')}
    """
    return {
        component: (str(value[0]), str(value[1]))
        for component, value in model_index.items()
        if not component.startswith("_") and isinstance(value, list) and len(value) == 2 and all(value)
    }


def is_buffer(tensor: str) -> bool:
    """Return whether a stored tensor of this name is a buffer rather than a parameter.

    Examples:
        >>> is_buffer("text_model.embeddings.position_ids")
        True
    """
    return bool(_BUFFERS.search(tensor))
