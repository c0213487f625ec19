"""A component as diffusers and transformers run it: float32 or bfloat16 with channels last, plain or compiled."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.component_worker import Runner
from benchmarks.contenders.job import Job


def import_libraries() -> None:
    """Imports torch and the classes, which is no part of loading a component."""
    importlib.import_module("diffusers.models.unets.unet_2d_condition")
    importlib.import_module("diffusers.models.autoencoders.autoencoder_kl")
    importlib.import_module("transformers.models.clip.modeling_clip")


def load(job: Job, inputs: Mapping[str, np.ndarray], dtype: str, compiled: bool = False) -> Runner:
    """The component in that precision, its weights taken from the pipeline folder; `inputs` are not needed."""
    import torch

    torch.set_num_threads(job.threads)
    torch.set_grad_enabled(False)
    precision = getattr(torch, dtype)
    module = open_module(job.model, job.component, precision)
    if precision is torch.bfloat16:
        module = module.to(memory_format=torch.channels_last)
    if compiled:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(job.part() / "inductor")
    call = torch.compile(call_component) if compiled else call_component

    def prepare(given: Mapping[str, np.ndarray]) -> dict[str, Any]:
        tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in given.items()}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and name != "timestep":
                tensors[name] = tensor.to(precision)
                if tensor.dim() == 4 and precision is torch.bfloat16:
                    tensors[name] = tensors[name].contiguous(memory_format=torch.channels_last)
        return tensors

    return Runner(
        prepare=prepare,
        run=lambda tensors: call(module, job.component, tensors),
        read=lambda output: output.float().numpy(),
        size_bytes=sum(t.numel() * t.element_size() for t in used_tensors(module, job.component)),
        details={"attention": "scaled_dot_product_attention", "compiled": compiled},
    )


def open_module(model: str, component: str, dtype: Any) -> Any:
    """The torch module that holds the component, in `dtype` and ready to infer."""
    part = "vae" if component.startswith("vae") else component
    library, name = json.loads((Path(model) / "model_index.json").read_text(encoding="utf-8"))[part]
    home = getattr(importlib.import_module(library), name)
    return home.from_pretrained(model, subfolder=part, torch_dtype=dtype, local_files_only=True).eval()


def call_component(module: Any, component: str, tensors: Mapping[str, Any]) -> Any:
    """The component's first output for inputs under their ONNX names."""
    if component == "unet":
        conditions = {name: tensors[name] for name in ("text_embeds", "time_ids") if name in tensors}
        return module(
            tensors["sample"],
            tensors["timestep"],
            encoder_hidden_states=tensors["encoder_hidden_states"],
            added_cond_kwargs=conditions or None,
            return_dict=False,
        )[0]
    if component == "vae_decoder":
        return module.decode(tensors["latent_sample"], return_dict=False)[0]
    return module(tensors["input_ids"])[0]


def used_tensors(module: Any, component: str) -> list[Any]:
    """The module's parameters that the component uses: of a VAE those of its decoder."""
    names = ("decoder.", "post_quant_conv.") if component == "vae_decoder" else ("",)
    return [tensor for name, tensor in module.named_parameters() if name.startswith(names)]
