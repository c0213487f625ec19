"""Opening ONNX folders as the stock diffusers pipelines they come from, computed by ONNX Runtime."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from sdcompress.backends.onnx.runtime import RunnableGraph, Runtime, choose_runtime
from sdcompress.backends.small_parts import open_small_part
from sdcompress.errors import ArtifactError, UserError
from sdcompress.families.registry import architecture_of, known_architectures
from sdcompress.sources.source import component_entries


def open_onnx_pipeline(folder: Path, device: str = "auto", threads: int | None = None, low_memory: bool = False) -> Any:
    """Return the stock diffusers pipeline of an ONNX folder, ready to be called; ONNX Runtime computes its components.

    Args:
        device, threads, low_memory: see `choose_runtime`.

    Raises:
        ArtifactError: the folder cannot be opened.
        UserError: the device is missing.
    """
    return open_graphs(folder, choose_runtime(device, threads, low_memory))


def open_graphs(folder: Path, runtime: Runtime) -> Any:
    """Return the stock diffusers pipeline of a folder, whose components are graphs that `runtime` runs."""
    import diffusers

    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: is not a pipeline ({error})") from None
    pipeline_class = getattr(diffusers, str(index.get("_class_name")), None)
    if pipeline_class is None:
        raise ArtifactError(
            f"{folder}: diffusers {diffusers.__version__} has no {index.get('_class_name')}; update diffusers"
        )
    takes = inspect.signature(pipeline_class.__init__).parameters
    options = {name: value for name, value in index.items() if name in takes and not isinstance(value, list)}
    entries = component_entries(index)
    parts = {
        name: open_component(folder, name, library, class_name, runtime)
        for name, (library, class_name) in entries.items()
    }
    absent = {name: None for name, value in index.items() if name in takes and name not in {*options, *parts}}
    pipeline = pipeline_class(**options, **absent, **parts)
    pipeline.save_pretrained = _refuse_to_save
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def open_component(folder: Path, name: str, library: str, class_name: str, runtime: Runtime) -> Any:
    """Return a component of the pipeline: its graph if it has one, else what its own library opens."""
    from sdcompress.backends.onnx import components, denoisers

    part = folder / name
    role = architecture_of(class_name).role
    if role == "autoencoder":
        decoder = folder / "vae_decoder"
        encoder = folder / "vae_encoder" / runtime.model_file
        config = components.read_config(decoder / "config.json", library, class_name)
        # With it, the pipeline would move a float16 VAE to float32; a graph keeps the precision of its file.
        config = type(config)({**config, "force_upcast": False})
        return components.OnnxAutoencoder(
            _open_graph(decoder / runtime.model_file, runtime),
            runtime.graph(encoder) if encoder.is_file() else None,
            config,
        )
    if role != "unknown":
        config = components.read_config(part / "config.json", library, class_name)
        opened = _open_graph(part / runtime.model_file, runtime)
        if role == "denoiser":
            denoiser = denoisers.OnnxUNet if class_name.startswith("UNet") else denoisers.OnnxDenoiser
            return denoiser(opened, config, class_name)
        classes = {
            "text encoder": components.OnnxTextEncoder,
            "control network": denoisers.OnnxControlNet,
            "safety checker": components.OnnxSafetyChecker,
        }
        return classes[role](opened, config)
    if (part / runtime.model_file).is_file() or (part / "config.json").is_file():
        raise UserError(
            f"{part}: sdcompress cannot run {class_name} with ONNX Runtime; it runs "
            f"{', '.join(sorted(known_architectures()))} (optimum.onnxruntime's ORTDiffusionPipeline may open the "
            f"folder)"
        )
    return open_small_part(part, library, class_name)


def runtime_of(pipeline: Any) -> Runtime:
    """Return the runtime of a pipeline that `open_onnx_pipeline` or `open_openvino_pipeline` returned."""
    from sdcompress.backends.onnx.components import OnnxComponent

    found = (each.graph.runtime for each in pipeline.components.values() if isinstance(each, OnnxComponent))
    return next(found)


def _open_graph(file: Path, runtime: Runtime) -> RunnableGraph:
    if not file.is_file():
        raise ArtifactError(f"{file}: missing; export or download the folder again")
    return runtime.graph(file)


def _refuse_to_save(*_: Any, **__: Any) -> None:
    raise UserError("save_pretrained: an ONNX pipeline is its folder; copy that")
