"""Stock models changed as their pruning says, before weights are loaded: parts bypassed, modules made narrower."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sdcompress.errors import ArtifactError
from sdcompress.sources.pruned_config import Pruning


class BypassedResnet(nn.Module):
    """The shortcut of a resnet alone."""

    def __init__(self, resnet: Any):
        super().__init__()
        self.conv_shortcut = resnet.conv_shortcut
        self.output_scale_factor = resnet.output_scale_factor

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None = None, *_: Any) -> torch.Tensor:
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return input_tensor if self.output_scale_factor == 1.0 else input_tensor / self.output_scale_factor


class BypassedTransformer(nn.Module):
    """A Transformer2DModel that returns its input."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        return (hidden_states,)


class BypassedBlock(nn.Module):
    """A transformer block that returns its input."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states


class BypassedJointBlock(nn.Module):
    """A block for text and latents that returns both."""

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return encoder_hidden_states, hidden_states


def rebuild(model: nn.Module, pruning: Pruning) -> None:
    """Bypass and narrow modules of the model in place; narrowed ones have no values yet.

    Raises:
        ArtifactError: a module cannot be bypassed or narrowed.
    """
    for name in pruning.removed:
        bypass(model, name)
    for name, width in pruning.widths.items():
        module = _find(model, name)
        kind = type(module).__name__
        if kind not in _NARROW:
            raise ArtifactError(
                f"{name}: a {kind} cannot be {width} wide; install the version of sdcompress that wrote the artifact"
            )
        _NARROW[kind](module, width)


def bypass(model: nn.Module, name: str) -> nn.Module:
    """Replace a resnet, a transformer or one of its blocks by a module that returns its input; return the old one."""
    module = _find(model, name)
    owner, _, leaf = name.rpartition(".")
    replacement: nn.Module
    if type(module).__name__ == "ResnetBlock2D":
        replacement = BypassedResnet(module)
    elif type(module).__name__ == "Transformer2DModel":
        replacement = BypassedTransformer()
    elif type(module).__name__ in ("BasicTransformerBlock", "SanaTransformerBlock"):
        replacement = BypassedBlock()
    elif type(module).__name__ in ("JointTransformerBlock", "FluxTransformerBlock", "FluxSingleTransformerBlock"):
        replacement = BypassedJointBlock()
    else:
        raise ArtifactError(
            f"{name}: a {type(module).__name__} cannot be bypassed; only resnets, transformers and their blocks can"
        )
    model.get_submodule(owner).register_module(leaf, replacement)
    return module


def _find(model: nn.Module, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ArtifactError(f"{name}: the config says that it was pruned, but the model has no such module") from None


def _narrow_resnet(resnet: Any, width: int) -> None:
    rows = width * (2 if resnet.time_embedding_norm == "scale_shift" else 1)
    resnet.conv1 = _convolution(resnet.conv1, out_channels=width)
    if resnet.time_emb_proj is not None:
        resnet.time_emb_proj = _linear(resnet.time_emb_proj, out_features=rows)
    norm = resnet.norm2
    resnet.norm2 = nn.GroupNorm(norm.num_groups, width, norm.eps, norm.affine, **_like(norm))
    resnet.conv2 = _convolution(resnet.conv2, in_channels=width)


def _narrow_attention(attention: Any, heads: int) -> None:
    inner = attention.inner_dim // attention.heads * heads
    for name in ("to_q", "to_k", "to_v"):
        setattr(attention, name, _linear(getattr(attention, name), out_features=inner))
    attention.to_out[0] = _linear(attention.to_out[0], in_features=inner)
    attention.heads = attention.sliceable_head_dim = heads
    attention.inner_dim = attention.inner_kv_dim = inner


def _narrow_feed_forward(feed_forward: Any, width: int) -> None:
    first, last = feed_forward.net[0], feed_forward.net[2]
    repeats = first.proj.out_features // last.in_features
    first.proj = _linear(first.proj, out_features=repeats * width)
    feed_forward.net[2] = _linear(last, in_features=width)


def _linear(old: nn.Linear, in_features: int | None = None, out_features: int | None = None) -> nn.Linear:
    sizes = (in_features or old.in_features, out_features or old.out_features)
    return nn.Linear(*sizes, bias=old.bias is not None, **_like(old))


def _convolution(old: nn.Conv2d, in_channels: int | None = None, out_channels: int | None = None) -> nn.Conv2d:
    kernel: Any = old.kernel_size
    settings: dict[str, Any] = {
        "stride": old.stride,
        "padding": old.padding,
        "bias": old.bias is not None,
        **_like(old),
    }
    return nn.Conv2d(in_channels or old.in_channels, out_channels or old.out_channels, kernel, **settings)


def _like(module: nn.Module) -> dict[str, Any]:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return {"device": weight.device, "dtype": weight.dtype}


_NARROW = {"ResnetBlock2D": _narrow_resnet, "Attention": _narrow_attention, "FeedForward": _narrow_feed_forward}
