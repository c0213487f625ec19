"""The calls of a pipeline's components: recorded while it draws, and replayed on another pipeline's components."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sdcompress.evaluation.metrics.components.decode_psnr import decode_psnr_db
from sdcompress.evaluation.metrics.components.noise_sqnr import noise_sqnr_db
from sdcompress.evaluation.metrics.components.safety_agreement import safety_agreement
from sdcompress.evaluation.metrics.components.text_cosine import text_cosine
from sdcompress.sources.source import DENOISERS

MOST_TIMESTEPS = 10  # replayed of each picture, spread evenly
PREDICTORS = (*DENOISERS, "controlnet")  # a ControlNet gives what the UNet adds to its own states


class Recorder:
    """Every call of a pipeline's components while pictures are drawn."""

    def __init__(self, pipeline: Any):
        self._components = recorded_components(pipeline)
        self._calls: list[dict[str, Any]] = []  # of all pictures
        self._picture = -1
        self._macs: dict[str, int | None] = {}
        self._latents = _latent_scaling(getattr(pipeline, "vae", None))

    @contextmanager
    def one_picture(self) -> Iterator[None]:
        """Record the calls of one more picture while in the context."""
        self._picture += 1
        methods = {name: getattr(owner, method) for name, (owner, method) in self._components.items()}
        try:
            for name, (owner, method) in self._components.items():
                setattr(owner, method, self._recorded(name, owner, methods[name]))
            yield
        finally:
            for name, (owner, method) in self._components.items():
                setattr(owner, method, methods[name])

    def save(self, file: Path) -> dict[str, int | None]:
        """Write the calls to replay. Return component -> multiply-accumulates per picture."""
        import torch

        recording = {"calls": _thin(self._calls), "counts": self._counts(), "latents": self._latents}
        torch.save(recording, file)
        return self._macs

    def _counts(self) -> dict[str, int]:
        """Return component -> its calls while the first picture was drawn."""
        first = [call["component"] for call in self._calls if call["picture"] == 0]
        return {name: first.count(name) for name in dict.fromkeys(first)}

    def _recorded(self, name: str, owner: Any, inner: Any) -> Any:
        @functools.wraps(inner)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            given = _stored((args, kwargs))  # before the call: a safety checker blackens its pictures in place
            if self._picture == 0:
                output, macs = count_macs(owner, inner, args, kwargs)
                before = self._macs.get(name, 0)
                self._macs[name] = None if macs is None or before is None else before + macs
            else:
                output = inner(*args, **kwargs)
            seen = {"component": name, "picture": self._picture, "given": given, "output": _stored(_main(output))}
            if name in PREDICTORS:
                seen["timestep"] = _timestep(inner, args, kwargs)
            self._calls.append(seen)
            return output

        return recorded


def replay(pipeline: Any, file: Path) -> tuple[dict[str, Any], dict[str, int | None]]:
    """Give recorded inputs to a pipeline's components.

    Returns:
        component -> its metrics, and component -> multiply-accumulates per picture.
    """
    import torch

    recording = torch.load(file, weights_only=True)
    components = recorded_components(pipeline)
    answers: dict[str, list[dict[str, Any]]] = {}
    macs: dict[str, int | None] = {}
    with torch.no_grad():
        for call in recording["calls"]:
            name = call["component"]
            if name not in components:
                continue
            owner, method = components[name]
            args, kwargs = _restored(call["given"], owner)
            if name == "vae":
                args, kwargs = _rescaled(args, kwargs, recording["latents"], _latent_scaling(owner))
            inner = getattr(owner, method)
            if name in macs:
                output = inner(*args, **kwargs)
            else:
                output, counted = count_macs(owner, inner, args, kwargs)
                macs[name] = None if counted is None else counted * recording["counts"][name]
            pair = {"original": _plain(call["output"]), "compressed": _plain(_stored(_main(output)))}
            answers.setdefault(name, []).append({**pair, "timestep": call.get("timestep")})
    return _figures(answers), macs


def recorded_components(pipeline: Any) -> dict[str, tuple[Any, str]]:
    """Return component -> (owner, method) of what is recorded: text encoders, denoiser, decoder, safety checker."""
    found = {}
    for name, component in pipeline.components.items():
        kind = "decode" if name == "vae" else "forward"
        wanted = name.startswith("text_encoder") or name in (*PREDICTORS, "vae", "safety_checker")
        if wanted and callable(getattr(component, kind, None)):
            found[name] = (component, kind)
    return found


def count_macs(owner: Any, inner: Any, args: Any, kwargs: Any) -> tuple[Any, int | None]:
    """Return the call's output and its multiply-accumulates; None where torch does not see them (as in ONNX)."""
    hidden = not hasattr(owner, "modules") or any(
        type(module).__module__.startswith(("bitsandbytes", "sdcompress.backends.onnx")) for module in owner.modules()
    )
    if hidden:
        return inner(*args, **kwargs), None
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        output = inner(*args, **kwargs)
    return output, counter.get_total_flops() // 2  # torch counts a multiplication and an addition as two


def _latent_scaling(vae: Any) -> list[float]:
    """Return factor and shift of the denoiser's latents, which are (latents of the VAE - shift) * factor."""
    config = getattr(vae, "config", None) or {}
    return [float(config.get(name) or default) for name, default in (("scaling_factor", 1.0), ("shift_factor", 0.0))]


def _rescaled(args: Any, kwargs: Any, given: list[float], wanted: list[float]) -> tuple[Any, Any]:
    """Return a decoder's arguments with the latents in the scale that another VAE wants."""
    if given == wanted or not args:
        return args, kwargs
    latents = (args[0] - given[1]) * given[0]
    return (latents / wanted[0] + wanted[1], *args[1:]), kwargs


def _figures(answers: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, pairs in answers.items():
        outputs = [(pair["original"], pair["compressed"]) for pair in pairs]
        if name.startswith("text_encoder"):
            figures[name] = {"cosine": text_cosine(outputs)}
        elif name in PREDICTORS:
            figures[name] = {"noise_sqnr_db": noise_sqnr_db(outputs, [pair["timestep"] for pair in pairs])}
        elif name == "vae":
            figures[name] = {"decode_psnr_db": decode_psnr_db(outputs)}
        else:
            figures[name] = safety_agreement(outputs)
    return figures


def _thin(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all calls, but of the denoiser's at most MOST_TIMESTEPS per picture, spread evenly."""
    kept = [call for call in calls if call["component"] not in PREDICTORS]
    for picture in sorted({call["picture"] for call in calls}):
        steps = [call for call in calls if call["component"] in PREDICTORS and call["picture"] == picture]
        count = min(MOST_TIMESTEPS, len(steps))
        kept += [steps[place * len(steps) // count] for place in range(count)]
    return kept


def _main(output: Any) -> Any:
    """Return what the next component gets: hidden states, predicted noise, pictures, or the safety checker's flags."""
    if isinstance(output, tuple):
        # The safety checker answers with (pictures, flags); everything else with one value first.
        main = output[1] if len(output) == 2 and isinstance(output[1], list) else output[0]
        return _flattened([*main, output[1]]) if _is_tensors(main) else main
    if hasattr(output, "last_hidden_state"):
        return output.last_hidden_state
    return output[0]


def _is_tensors(value: Any) -> bool:
    """Return whether the value is a ControlNet's states, one for each of the UNet's."""
    import torch

    return isinstance(value, list | tuple) and all(isinstance(each, torch.Tensor) for each in value)


def _flattened(states: list[Any]) -> Any:
    import torch

    return torch.cat([state.flatten(1) for state in states], dim=1)  # [batch, all of them]


def _timestep(inner: Any, args: Any, kwargs: Any) -> float:
    value = inspect.signature(inner).bind(*args, **kwargs).arguments["timestep"]
    return float(value.reshape(-1)[0]) if hasattr(value, "reshape") else float(value)


def _stored(value: Any) -> Any:
    """Return the value with tensors copied to the CPU and arrays as tensors, all of which torch.load trusts."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, np.ndarray):
        return {"array": torch.from_numpy(value.copy())}
    if isinstance(value, Mapping):
        return {key: _stored(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_stored(each) for each in value) if type(value) in (list, tuple) else list(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Generator):
        return None  # a decoder is given one and draws nothing from it
    return value


def _restored(value: Any, owner: Any) -> Any:
    """Return what `_stored` kept, on the device and in the floating-point dtype of `owner`."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(owner.device, owner.dtype if value.is_floating_point() else value.dtype)
    if isinstance(value, Mapping):
        if set(value) == {"array"}:
            return value["array"].numpy()
        return {key: _restored(each, owner) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_restored(each, owner) for each in value)
    return value


def _plain(value: Any) -> np.ndarray:
    """Return an output as float64 (flags: as booleans)."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.double().numpy()
    return np.asarray(value)
