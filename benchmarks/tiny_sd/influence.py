"""How much each part of the UNet matters: the relative change of its prediction when the part's output is zeroed."""

from __future__ import annotations

from contextlib import contextmanager

import torch

TIMESTEPS = (999, 850, 700, 550, 400, 250, 120, 30)


@contextmanager
def zeroed(module: torch.nn.Module):
    """The module's output (every tensor in it) is zero inside this context."""

    def blank(value):
        if torch.is_tensor(value):
            return torch.zeros_like(value)
        return tuple(blank(part) for part in value) if isinstance(value, tuple) else value

    handle = module.register_forward_hook(lambda module, arguments, output: blank(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def bypassed(unet: torch.nn.Module):
    """The mid block passes its input on, as a UNet without one does."""
    handle = unet.mid_block.register_forward_hook(lambda module, arguments, output: arguments[0])
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def predictions(unet, diffusion, latents: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The UNet's output for the same noisy latents at every timestep of TIMESTEPS, [timesteps, n, 4, 16, 16]."""
    generator = torch.Generator().manual_seed(5)
    outputs = []
    for timestep in TIMESTEPS:
        noise = torch.randn(latents.shape, generator=generator)
        noisy = diffusion.signal[timestep] * latents + diffusion.noise[timestep] * noise
        outputs.append(unet(noisy, timestep, encoder_hidden_states=text).sample)
    return torch.stack(outputs)


def relative_change(changed: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean over timesteps of the relative L2 distance, in percent."""
    distance = (changed - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
    return float(distance.mean()) * 100


def influences(unet, diffusion, latents, text, modules: dict[str, torch.nn.Module]) -> dict[str, float]:
    """Influence in percent of every named module, and of leaving out the mid block as `mid_block (bypassed)`."""
    reference = predictions(unet, diffusion, latents, text)
    result = {}
    for name, module in modules.items():
        with zeroed(module):
            result[name] = relative_change(predictions(unet, diffusion, latents, text), reference)
    with bypassed(unet):
        result["mid_block (bypassed)"] = relative_change(predictions(unet, diffusion, latents, text), reference)
    return result


def block_influences(unet, diffusion, latents, text) -> dict[str, float]:
    """The few influences worth watching during training, in percent."""
    modules = {"mid": unet.mid_block, "up0": unet.up_blocks[0], "down2": unet.down_blocks[2]}
    return influences(unet, diffusion, latents, text, modules)
