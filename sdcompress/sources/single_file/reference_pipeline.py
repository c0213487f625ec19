"""The pipeline whose configs a checkpoint is read with: from the catalog or from a folder, adapted to the checkpoint.

A checkpoint holds tensors alone. Configs, scheduler and tokenizers come from a reference pipeline of the same
architecture. A reference from the catalog is adapted: to the UNet's input channels (inpainting, InstructPix2Pix) and to
what the UNet predicts (noise or velocity).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdcompress.errors import SourceError, nearest
from sdcompress.files.safetensors_file import TensorRange
from sdcompress.sources import catalog
from sdcompress.sources.component_folder import component_ranges, has_weights, read_json, specs_of_ranges
from sdcompress.sources.empty_model import empty_model
from sdcompress.sources.portable_parts import portable_folder
from sdcompress.sources.single_file.layouts import CONV_IN
from sdcompress.sources.single_file.tokenizers import TokenizerConfigs
from sdcompress.sources.source import ASSETS, BUILT_IN, component_entries, pipeline_class_of
from sdcompress.sources.spec import ComponentSpec, TensorSpec, parameter
from sdcompress.sources.tensor_names import canonical_name
from sdcompress.sources.weight_files import is_weight_file

PREDICTIONS = ("epsilon", "v_prediction")
_SCHEDULER = "scheduler/scheduler_config.json"
_SAFETY = ("safety_checker", "feature_extractor")  # no checkpoint holds the checker
_SD2_BASE_PIXELS = 512
_VAE_SCALE = 8

# (class for text to image, input channels of the UNet) -> class for these channels
_CLASS_BY_CHANNELS = {
    ("StableDiffusionPipeline", 9): "StableDiffusionInpaintPipeline",
    ("StableDiffusionPipeline", 8): "StableDiffusionInstructPix2PixPipeline",
    ("StableDiffusionXLPipeline", 9): "StableDiffusionXLInpaintPipeline",
    ("StableDiffusionXLPipeline", 8): "StableDiffusionXLInstructPix2PixPipeline",
}


@dataclass(frozen=True)
class ReferencePipeline:
    """The configs that a checkpoint is read with.

    Attributes:
        title: its name in messages.
        model_index: content of model_index.json.
        components: component -> spec that the checkpoint has to fit.
        files: path in the pipeline's folder -> content of the small files.
        tokenizers: tokenizer -> its config, of those whose vocabulary has to be found.
        tensors: component -> tensor -> range, of components that have weights of their own.
        in_catalog: whether it comes from the catalog, and so may be adapted to the checkpoint.
    """

    title: str
    model_index: dict[str, Any]
    components: dict[str, ComponentSpec]
    files: dict[str, bytes]
    tokenizers: TokenizerConfigs = field(default_factory=dict)
    tensors: Mapping[str, Mapping[str, TensorRange]] = field(default_factory=dict)
    in_catalog: bool = False

    def without(self, *names: str) -> ReferencePipeline:
        """Return the pipeline with these components marked absent."""
        absent = {name for name in names if name in self.model_index}
        return dataclasses.replace(
            self,
            model_index={**self.model_index, **{name: [None, None] for name in sorted(absent)}},
            components={name: spec for name, spec in self.components.items() if name not in absent},
            files={path: content for path, content in self.files.items() if path.split("/")[0] not in absent},
            tokenizers={name: config for name, config in self.tokenizers.items() if name not in absent},
            tensors={name: ranges for name, ranges in self.tensors.items() if name not in absent},
        )


def find_reference(like: str | None, entry: str) -> ReferencePipeline:
    """Return the reference pipeline.

    Args:
        like: a folder, a built-in name or a name of the catalog; None for the catalog's `entry`.
        entry: name of the catalog's pipeline for the checkpoint's layout.

    Raises:
        SourceError: `like` names no pipeline.
    """
    if like is None:
        return _from_catalog(catalog.load_entry(entry))
    path = ASSETS / like if like in BUILT_IN else Path(like).expanduser()
    if path.is_dir():
        return _from_folder(path)
    found = catalog.find(like)
    if found is None:
        known = nearest(like, (*BUILT_IN, *catalog.names()))
        raise SourceError(f"--like {like}: no such folder, and no name sdcompress knows; {known}")
    return _from_catalog(found)


def match_input_channels(
    reference: ReferencePipeline, checkpoint: Mapping[str, TensorRange], file: Path
) -> ReferencePipeline:
    """Return the reference with the pipeline class for the input channels of the checkpoint's UNet.

    Raises:
        SourceError: no pipeline class of this architecture takes so many channels.
    """
    unet = reference.components.get("unet")
    if not reference.in_catalog or unet is None or CONV_IN not in checkpoint:
        return reference
    channels = checkpoint[CONV_IN].shape[1]
    if channels == unet.config["in_channels"]:
        return reference
    pipeline_class = _CLASS_BY_CHANNELS.get((pipeline_class_of(reference.model_index), channels))
    if pipeline_class is None:
        raise SourceError(
            f"{file}: its UNet takes {channels} channels, which no pipeline of {reference.title} that sdcompress knows "
            f"does; name a diffusers folder of the same kind with --like"
        )
    width = unet.tensors["conv_in.weight"].shape
    tensors = {**unet.tensors, "conv_in.weight": parameter((width[0], channels, *width[2:]), "F16")}
    unet = unet.replace(config={**unet.config, "in_channels": channels}, tensors=tensors)
    return dataclasses.replace(
        reference,
        title=f"{reference.title} ({pipeline_class})",
        model_index={**reference.model_index, "_class_name": pipeline_class},
        components={**reference.components, "unet": unet},
    )


def set_prediction_type(
    reference: ReferencePipeline, checkpoint: Mapping[str, TensorRange], prediction: str | None, layout: str
) -> tuple[ReferencePipeline, list[str]]:
    """Return the reference with its scheduler set to what the checkpoint's UNet predicts, and remarks for the user.

    Args:
        reference: the reference pipeline.
        checkpoint: tensor -> range. `v_pred` among them says that an SDXL checkpoint predicts velocity.
        prediction: `epsilon` or `v_prediction` if the user says it.
        layout: title of the checkpoint's layout.

    Raises:
        SourceError: `prediction` is another word.
    """
    if prediction is not None and prediction not in PREDICTIONS:
        raise SourceError(f"--prediction {prediction}: use one of {', '.join(PREDICTIONS)}")
    if _SCHEDULER not in reference.files:
        return reference, []
    is_sd2 = layout == "Stable Diffusion 2.x" and reference.in_catalog
    if prediction is None and "v_pred" in checkpoint:
        prediction = "v_prediction"
    if prediction is None:
        note = (
            "Stable Diffusion 2.x does not say what it predicts: read as the 768-pixel model (v_prediction); for a "
            "512-pixel base model give --prediction epsilon"
        )
        return reference, [note] if is_sd2 else []
    config = json.loads(reference.files[_SCHEDULER]) | {"prediction_type": prediction}
    if "ztsnr" in checkpoint:  # trained to start from pure noise
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    files = {**reference.files, _SCHEDULER: json.dumps(config, indent=2).encode()}
    components = reference.components
    if is_sd2 and prediction == "epsilon":
        unet = components["unet"]
        unet = unet.replace(config={**unet.config, "sample_size": _SD2_BASE_PIXELS // _VAE_SCALE})
        components = {**components, "unet": unet}
    note = f"the scheduler is set to prediction_type {prediction}"
    return dataclasses.replace(reference, files=files, components=components), [note]


def _from_catalog(entry: catalog.Entry) -> ReferencePipeline:
    source = catalog.open_entry(entry, entry.name)
    files = {path: json.dumps(content, indent=2).encode() for path, content in entry.files.items()}
    reference = ReferencePipeline(
        entry.title, dict(entry.model_index), dict(source.components), files, entry.tokenizers, in_catalog=True
    ).without(*_SAFETY)
    if "safety_checker" in reference.model_index:
        reference.model_index["requires_safety_checker"] = False
    return reference


def _from_folder(path: Path) -> ReferencePipeline:
    model_index = read_json(path / "model_index.json", missing=f"--like {path}: is no pipeline (no model_index.json)")
    components: dict[str, ComponentSpec] = {}
    tensors: dict[str, Mapping[str, TensorRange]] = {}
    files: dict[str, bytes] = {}
    names_in: dict[str, list[str]] = {}
    for name, (library, class_name) in component_entries(model_index).items():
        folder = path / name
        names_in[name] = [file.name for file in folder.rglob("*")]
        for file in sorted(folder.rglob("*")):
            if file.is_file() and not is_weight_file(file.name):
                files[file.relative_to(path).as_posix()] = file.read_bytes()
        if not (folder / "config.json").is_file() or name.startswith("tokenizer"):
            continue
        config = read_json(folder / "config.json", missing=str(folder))
        spec = ComponentSpec(name, library, class_name, config, {}, pipeline_class_of(model_index))
        if has_weights(folder):
            tensors[name] = component_ranges(folder, class_name) or {}
            components[name] = spec.replace(tensors=specs_of_ranges(tensors[name]))
        else:
            components[name] = spec.replace(tensors=_tensors_of_class(spec))
    if not components:
        raise SourceError(f"--like {path}: has no component with a config.json; give the folder of a pipeline")
    model_index, changed = portable_folder(model_index, names_in, files.__getitem__)
    changed.pop("model_index.json", None)  # the checkpoint's own is made from `model_index`
    return ReferencePipeline(str(path), model_index, components, files | changed, tensors=tensors)


def _tensors_of_class(spec: ComponentSpec) -> dict[str, TensorSpec]:
    """Return the tensors that the component's class has with this config."""
    state = empty_model(spec.library, spec.class_name, spec.config).state_dict()
    return {
        canonical_name(spec.class_name, name): parameter(tuple(tensor.shape), catalog.COUNTED_DTYPE)
        for name, tensor in state.items()
    }
