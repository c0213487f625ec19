"""Replacements of a pipeline's components, which stock diffusers pipelines call and ONNX Runtime computes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from sdcompress.backends.onnx.runtime import RunnableGraph
from sdcompress.errors import ArtifactError, UserError


class OnnxComponent(nn.Module):
    """A component that a graph computes. It is a Module, so that pipelines find its device and dtype."""

    def __init__(self, graph: RunnableGraph, config: Any):
        super().__init__()
        self.graph = graph
        self._internal_dict = config

    @property
    def config(self) -> Any:
        return self._internal_dict

    @property
    def device(self) -> torch.device:
        return self.graph.runtime.torch_device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the graph's outputs."""
        return next(dtype for dtype, _ in self.graph.outputs.values() if dtype.is_floating_point)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Return the component itself. Its device and dtype cannot change.

        Raises:
            UserError: another device or dtype is requested.
        """
        for asked in (*args, *kwargs.values()):
            if isinstance(asked, torch.dtype) and not self._accepts(asked):
                raise UserError(
                    f"{self.graph.file}: computes in {self.dtype}, not {asked}: the precision of an ONNX pipeline is "
                    f"in its files; compress with another recipe"
                )
            if isinstance(asked, str | torch.device) and torch.device(asked).type != self.device.type:
                raise UserError(
                    f"{self.graph.file}: stays on the device it was opened on; sdcompress.open_pipeline(..., "
                    f"device={str(asked)!r}) opens it there"
                )
        return self

    def _accepts(self, dtype: torch.dtype) -> bool:
        return dtype == self.dtype

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(
                f"{type(self).__name__} has no {name}: it runs an ONNX graph, which is fixed (no LoRA, attention "
                f"processors, tiling or slicing); use the torch pipeline for that"
            ) from None

    def _run(self, inputs: Mapping[str, Any], names: list[str] | None = None) -> dict[str, torch.Tensor]:
        """Run the graph. UserError names an input that it does not take, or one that is missing."""
        given = {name: value for name, value in inputs.items() if value is not None}
        for name in given:
            if name not in self.graph.inputs:
                self.refuse(f"takes no {name}")
        for name in self.graph.inputs:
            if name not in given:
                self.refuse(f"needs {name}, which this pipeline does not give")
        return self.graph.run(given, names)

    def refuse(self, what: str) -> NoReturn:
        """Raise UserError that names the graph's file and what it cannot do."""
        raise UserError(f"{self.graph.file}: {what}")


class OnnxTextEncoder(OnnxComponent):
    """Replaces CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel and Gemma2Model."""

    _last: torch.Tensor | None = None

    @property
    def text_model(self) -> OnnxTextEncoder:
        """The component itself, for pipelines that use `text_model.final_layer_norm` (clip_skip)."""
        return self

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
        from transformers.models.clip.modeling_clip import CLIPTextModelOutput

        names = list(self.graph.outputs)
        layers = [f"hidden_states.{index}" for index in range(len(names)) if f"hidden_states.{index}" in names]
        wanted = [name for name in ("text_embeds", "last_hidden_state", "pooler_output") if name in names]
        if output_hidden_states and not layers:
            self.refuse("was exported without its hidden states, which clip_skip and SDXL need")
        outputs = self._run(
            {"input_ids": input_ids, "attention_mask": attention_mask},
            [*map(str, wanted), *(layers if output_hidden_states else ())],
        )
        self._last = outputs["last_hidden_state"]
        plain: dict[str, Any] = {name: outputs[name] for name in wanted}
        if output_hidden_states:
            plain["hidden_states"] = (*(outputs[name] for name in layers), self._last)
        answer: Any = BaseModelOutputWithPooling if "pooler_output" in outputs else BaseModelOutput
        result = (CLIPTextModelOutput if "text_embeds" in outputs else answer)(**plain)
        return result.to_tuple() if return_dict is False else result

    def final_layer_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return a hidden state after the text model's last normalization, which last_hidden_state includes."""
        if hidden is self._last:
            return hidden
        weight, bias = (_initializer(self.graph, f"final_layer_norm.{name}").to(hidden) for name in ("weight", "bias"))
        return torch.nn.functional.layer_norm(hidden, weight.shape, weight, bias, self.config.layer_norm_eps)


class OnnxAutoencoder(OnnxComponent):
    """Replaces AutoencoderKL, AutoencoderTiny and AutoencoderDC: two graphs; `graph` is the decoder."""

    def __init__(self, decoder: RunnableGraph, encoder: RunnableGraph | None, config: Any):
        super().__init__(decoder, config)
        self.encoder_graph = encoder

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution, EncoderOutput
        from diffusers.models.modeling_outputs import AutoencoderKLOutput

        if self.encoder_graph is None:
            raise UserError(f"{self.graph.file.parent.parent}: has no vae_encoder, which image-to-image needs")
        outputs = self.encoder_graph.run({"sample": x})
        if "latent_parameters" in outputs:
            distribution = DiagonalGaussianDistribution(outputs["latent_parameters"])
            return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)
        latents = outputs["latent_sample"]
        if not return_dict:
            return (latents,)
        tiny = self.config.get("_class_name") == "AutoencoderTiny"
        return AutoencoderTinyOutput(latents=latents) if tiny else EncoderOutput(latent=latents)

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> Any:
        from diffusers.models.autoencoders.vae import DecoderOutput

        sample = self._run({"latent_sample": z})["sample"]
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def _accepts(self, dtype: torch.dtype) -> bool:
        # SDXL's pipeline moves the VAE to the latents' dtype on Macs; the graph's input is cast anyway.
        return dtype.is_floating_point


class OnnxSafetyChecker(OnnxComponent):
    """Replaces StableDiffusionSafetyChecker."""

    def forward(self, clip_input: torch.Tensor, images: Any) -> tuple[Any, list[bool]]:
        """Return the pictures, with flagged ones black, and which were flagged.

        The result does not depend on `images`, which the graph takes as part of its interface: it gets one pixel of
        each. The pictures become black here, whatever their type is.
        """
        pixels = torch.zeros((len(clip_input), 1, 1, 3), device=clip_input.device)
        flags = self._run({"clip_input": clip_input, "images": pixels}, ["has_nsfw_concepts"])["has_nsfw_concepts"]
        flagged = [bool(flag) for flag in flags.reshape(-1).tolist()]
        for index, flag in enumerate(flagged):
            if flag:
                images[index][...] = 0
        return images, flagged


def read_config(file: Path, library: str, class_name: str) -> Any:
    """Return the config of a component as its library gives it: with attributes, and defaults for absent values."""
    import importlib

    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file}: cannot be read ({error}); export or download the folder again") from None
    if library == "stable_diffusion":
        library = "diffusers.pipelines.stable_diffusion.safety_checker"
    original = getattr(importlib.import_module(library), class_name)
    if hasattr(original, "config_class"):
        return original.config_class.from_dict(given)
    from diffusers.configuration_utils import FrozenDict

    parameters = inspect.signature(original.__init__).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    return FrozenDict({**defaults, **given})


def _initializer(graph: RunnableGraph, ending: str) -> torch.Tensor:
    """Return the only tensor of the graph whose name ends with `ending`."""
    found = graph.tensors_ending(ending)
    if len(found) != 1:
        raise UserError(f"{graph.file}: has no tensor {ending}, which clip_skip needs")
    return found[0]
