"""torch modules with the inputs and outputs of the ONNX parts, around the libraries' own classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sdcompress.backends.torch.pruned_modules import rebuild
from sdcompress.components.onnx_parts import OnnxPart
from sdcompress.pruning.marking import pruning_of
from sdcompress.spec import ComponentSpec


def empty_component(spec: ComponentSpec) -> nn.Module:
    """The component's module from its config: parameters on the meta device, buffers computed."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        if spec.library == "diffusers":
            import diffusers

            config = {name: value for name, value in spec.config.items() if name != "quantization_config"}
            model = getattr(diffusers, spec.class_name).from_config(config)
            rebuild(model, pruning_of(spec.config))
            return model.eval()  # type: ignore[no-any-return]
        return _transformers_module(spec).eval()


def wrap(part: OnnxPart, model: nn.Module) -> nn.Module:
    """A module whose forward takes the part's inputs by name and returns its outputs in order."""
    return _WRAPPERS[part.kind](model, part)


def _transformers_module(spec: ComponentSpec) -> nn.Module:
    import transformers

    config: Mapping[str, Any] = dict(spec.config)
    if spec.class_name == "StableDiffusionSafetyChecker":
        from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

        return StableDiffusionSafetyChecker(transformers.CLIPConfig.from_dict(config))
    cls = getattr(transformers, spec.class_name)
    return cls._from_config(cls.config_class.from_dict(config), attn_implementation="sdpa")  # type: ignore[no-any-return]


class _Part(nn.Module):
    def __init__(self, model: nn.Module, part: OnnxPart):
        super().__init__()
        self.model = model
        self._part = part


class _TextEncoder(_Part):
    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.model(input_ids, output_hidden_states=True, return_dict=True)
        pooled = [getattr(result, name) for name in self._part.outputs if not name.startswith("hidden_states.")]
        return (*pooled, *result.hidden_states[:-1])


class _UNet(_Part):
    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        added = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        result = self.model(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=timestep_cond,
            added_cond_kwargs=added,
            return_dict=False,
        )
        return result[0]  # type: ignore[no-any-return]


class _VaeEncoder(_Part):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.model.encode(sample, return_dict=False)[0].parameters  # type: ignore[operator, no-any-return]


class _VaeDecoder(_Part):
    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        return self.model.decode(latent_sample, return_dict=False)[0]  # type: ignore[operator, no-any-return]


class _SafetyChecker(_Part):
    """diffusers' StableDiffusionSafetyChecker.forward_onnx, the flagged pictures made black without indexing."""

    def forward(self, clip_input: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        checker: Any = self.model
        pooled = checker.vision_model(clip_input)[1]
        embeds = nn.functional.normalize(checker.visual_projection(pooled))
        special = embeds @ nn.functional.normalize(checker.special_care_embeds).t()
        concepts = embeds @ nn.functional.normalize(checker.concept_embeds).t()
        special_care = torch.any(special - checker.special_care_embeds_weights > 0, dim=1)
        adjustment = (special_care * 0.01).unsqueeze(1)
        flagged = torch.any((concepts - checker.concept_embeds_weights) + adjustment > 0, dim=1)
        return torch.where(flagged.view(-1, 1, 1, 1), torch.zeros_like(images), images), flagged


_WRAPPERS: dict[str, type[_Part]] = {
    "text_encoder": _TextEncoder,
    "unet": _UNet,
    "vae_encoder": _VaeEncoder,
    "vae_decoder": _VaeDecoder,
    "safety_checker": _SafetyChecker,
}
