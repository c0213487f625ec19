"""How much the drawn picture changes with the weights of each layer, to first order.

The picture p depends on a weight matrix W through every denoising step at once: an error dW is the same in all of them.
For a random v with E[v v^T] = 1 the gradient g of <v, p> with respect to W tells the effect of any dW, since
E_v <dW, g>^2 = |dp|^2 to first order. One backward pass through the whole trajectory (VAE, every step of the denoiser,
text encoders) gives g for all layers. Of g three numbers are kept for each output channel, from which
`searching/damage.py` makes the damage of a rounded weight. The trajectory is computed again step by step in the
backward pass (gradient checkpointing), so that the activations of one step are in memory at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sdcompress.backends.torch.trajectories import check_calibration
from sdcompress.backends.torch.whole_pipeline import WholePipeline
from sdcompress.calibration.settings import Calibration
from sdcompress.errors import SourceError
from sdcompress.progress import Listener, ProgressEvent, silent
from sdcompress.sources.source import DENOISERS, Source

LARGE = 100_000_000  # a component with more parameters checkpoints its blocks too
_PROBE_SEED = 2**20  # probes have seeds of their own

Wanted = Mapping[str, Sequence[str]]  # component -> layers
Rows = dict[str, dict[str, torch.Tensor]]  # component -> layer -> [3, out]; empty where no picture needs the layer
ENERGY, ALONG, BIAS = range(3)  # |g_o|^2; <W_o, g_o>; the gradient of the bias, 0 without one


@dataclass(frozen=True)
class Drawn:
    """What one backward pass found.

    Args:
        rows: component -> layer -> ENERGY, ALONG and BIAS of each row, [3, out] float32.
        pixels: numbers that the picture has.
    """

    rows: Rows
    pixels: int


class GradientStore(Protocol):
    """Where what was found for each prompt is kept."""

    def load(self, index: int) -> Drawn | None:
        """Return what was found for the prompt; None where nothing is stored."""

    def save(self, index: int, drawn: Drawn) -> None:
        """Keep what was found for the prompt."""


def gather_gradients(
    source: Source,
    wanted: Wanted,
    calibration: Calibration,
    store: GradientStore,
    indices: Sequence[int],
    listener: Listener = silent,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Draw a picture for each prompt and keep what its gradients tell of each row. What is stored is not done again.

    Args:
        wanted: component -> names of layers, as files call them.
        calibration: prompts, seeds and sampler.
        indices: of the prompts to draw.
        listener: told of the pictures.
        dtype: in which the components compute; sums are in float32.

    Raises:
        SourceError: the pipeline cannot draw here, or a gradient is NaN or infinite.
    """
    check_calibration(source, wanted, "sensitivities")
    missing = [index for index in indices if store.load(index) is None]

    def tell(done: int) -> None:
        listener(ProgressEvent("measuring", "sensitivities", done, len(indices), "pictures"))

    tell(len(indices) - len(missing))
    if not missing:
        return
    drawing = _Drawing(source, wanted, calibration, device, dtype)
    for place, index in enumerate(missing):
        store.save(index, drawing.draw(index))
        tell(len(indices) - len(missing) + place + 1)


class _Drawing:
    """A pipeline whose pictures can be differentiated with respect to the wanted layers' weights."""

    def __init__(self, source: Source, wanted: Wanted, calibration: Calibration, device: str, dtype: torch.dtype):
        self._name, self._whole = source.name, WholePipeline(source, calibration, device, dtype)
        models = self._whole.models
        denoiser = next(models[name] for name in DENOISERS if name in models)
        for model in models.values():
            _use_plain_attention(model)
            if sum(parameter.numel() for parameter in model.parameters()) > LARGE:
                _checkpoint_blocks(model)
        denoiser.forward = _checkpointed(denoiser.forward)
        self._parameters: dict[tuple[str, str], tuple[nn.Parameter, nn.Parameter | None]] = {}
        for component, layers in wanted.items():
            for layer in layers:
                module = self._whole.layer(component, layer)
                weight, bias = module.weight, getattr(module, "bias", None)
                assert isinstance(weight, nn.Parameter)
                for parameter in (weight, bias):
                    if parameter is not None:
                        parameter.requires_grad_()
                self._parameters[component, layer] = weight, bias

    def draw(self, index: int) -> Drawn:
        """Return what the gradients of the prompt's picture tell of each row."""
        pipeline = self._whole.pipeline
        call = inspect.unwrap(type(pipeline).__call__)  # without its no_grad
        takes = inspect.signature(call).parameters
        if "prompt" not in takes:
            raise SourceError(f"{self._name}: its pipeline takes no prompt, so no picture can be differentiated")
        with torch.enable_grad():
            picture = call(pipeline, **self._whole.arguments(index)).images.float()
            probe = torch.randn(picture.shape, generator=torch.Generator().manual_seed(_PROBE_SEED + index))
            (picture * probe.to(picture.device)).sum().backward()
        rows: Rows = {}
        for (component, layer), (weight, bias) in self._parameters.items():
            if weight.grad is None:
                continue
            gradient = weight.grad.flatten(1).float()
            along = (gradient * weight.detach().flatten(1).float()).sum(1)
            shift = torch.zeros_like(along) if bias is None or bias.grad is None else bias.grad.float()
            found = torch.stack([gradient.square().sum(1), along, shift]).cpu()
            weight.grad = None
            if bias is not None:
                bias.grad = None
            if not bool(found.isfinite().all()):
                raise SourceError(
                    f"{component}.{layer}: the gradient of a picture is NaN or infinite; the weights are broken"
                )
            rows.setdefault(component, {})[layer] = found
        return Drawn(rows, picture.numel())


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return `forward` so that its activations are computed again in the backward pass."""

    def run(*arguments: Any, **named: Any) -> Any:
        return checkpoint(partial(forward, **named), *arguments, use_reentrant=False)

    return run


def _checkpoint_blocks(model: Any) -> None:
    """Compute the activations inside the model's blocks again in the backward pass, where the model can do that."""
    enable = getattr(model, "enable_gradient_checkpointing", None) or getattr(
        model, "gradient_checkpointing_enable", None
    )
    if enable is not None and getattr(model, "_supports_gradient_checkpointing", True):
        enable()


def _use_plain_attention(model: Any) -> None:
    """Use diffusers' attention of single operations on CPUs, where the fused one's backward pass is slow."""
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    processors = getattr(model, "attn_processors", {})
    plain = all(isinstance(processor, AttnProcessor2_0) for processor in processors.values())
    if processors and plain and next(model.parameters()).device.type == "cpu":
        model.set_attn_processor(AttnProcessor())
