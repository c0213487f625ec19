"""torch modules with the inputs and outputs of the ONNX graphs, around the libraries' own classes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from sdcompress.families.architecture import DOWN_RESIDUAL, MID_RESIDUAL, OnnxPart

# Inputs that pipelines give inside of `added_cond_kwargs`: SDXL's, and PixArt's.
ADDED = ("text_embeds", "time_ids", "resolution", "aspect_ratio")
# PixArt without sizes needs these arguments as None.
NOTHING_ADDED = {"resolution": None, "aspect_ratio": None}


def wrap(part: OnnxPart, model: nn.Module) -> nn.Module:
    """Return a module whose forward takes the graph's inputs by name and returns its outputs in order."""
    if part.kind in _WRAPPERS:
        return _WRAPPERS[part.kind](model, part)
    return _with_named_inputs(_Denoiser(model, part), part)


def _with_named_inputs(denoiser: _Denoiser, part: OnnxPart) -> nn.Module:
    """Return the module with a `forward` whose signature, which the exporter reads, has the graph's inputs."""
    names = [each.name for each in part.inputs]

    def forward(*positional: torch.Tensor, **named: torch.Tensor) -> Any:
        return denoiser._call({**dict(zip(names, positional, strict=False)), **named})

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    denoiser.forward = forward  # type: ignore[method-assign]
    return denoiser


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])


class _Part(nn.Module):
    def __init__(self, model: nn.Module, part: OnnxPart):
        super().__init__()
        self.model = model
        self._part = part


class _TextEncoder(_Part):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        masked = {} if attention_mask is None else {"attention_mask": attention_mask}
        hidden = any(name.startswith("hidden_states.") for name in self._part.outputs)
        result = self.model(input_ids, **masked, output_hidden_states=hidden, return_dict=True)
        pooled = [getattr(result, name) for name in self._part.outputs if not name.startswith("hidden_states.")]
        return (*pooled, *(result.hidden_states[:-1] if hidden else ()))


class _Denoiser(_Part):
    """A UNet, transformer or ControlNet; `wrap` makes its `forward`, which takes the graph's inputs."""

    def _call(self, inputs: dict[str, torch.Tensor]) -> Any:
        added = {name: inputs.pop(name) for name in ADDED if name in inputs}
        arguments: dict[str, Any] = inputs
        if added or "added_cond_kwargs" in inspect.signature(self.model.forward).parameters:
            arguments["added_cond_kwargs"] = added or NOTHING_ADDED
        down = sorted((name for name in inputs if name.startswith(DOWN_RESIDUAL)), key=_number)
        if down:
            arguments["down_block_additional_residuals"] = tuple(arguments.pop(name) for name in down)
            arguments["mid_block_additional_residual"] = arguments.pop(MID_RESIDUAL)
        result = self.model(**arguments, return_dict=False)
        if self._part.kind == "controlnet":
            return (*result[0], result[1])
        return result[0]


class _VaeEncoder(_Part):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        encoded = self.model.encode(sample, return_dict=False)[0]  # type: ignore[operator]
        return getattr(encoded, "parameters", encoded)  # type: ignore[no-any-return]


class _VaeDecoder(_Part):
    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        return self.model.decode(latent_sample, return_dict=False)[0]  # type: ignore[operator, no-any-return]


class _SafetyChecker(_Part):
    """StableDiffusionSafetyChecker.forward_onnx of diffusers, but flagged pictures become black without indexing."""

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
    "vae_encoder": _VaeEncoder,
    "vae_decoder": _VaeDecoder,
    "safety_checker": _SafetyChecker,
}
