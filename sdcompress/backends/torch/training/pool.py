"""What the original's denoiser is given while it draws: points of trajectories, cached prompt by prompt.

They are in `trajectories/KEY/NUMBER.safetensors` of the cache folder, in float16. A run that was killed continues after
the last finished prompt, and the next recipe for the same model and prompts draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdcompress.backends.torch.input_statistics import content_key
from sdcompress.backends.torch.source_parts import open_without_models
from sdcompress.backends.torch.trajectories import CalibrationRun, Observer, Outputs, check_calibration
from sdcompress.calibration.settings import Calibration
from sdcompress.errors import SourceError
from sdcompress.files.cache import cache_folder
from sdcompress.files.sealed_file import read_sealed, spec_of, write_sealed
from sdcompress.files.torch_tensors import read_tensor
from sdcompress.progress import Listener, silent
from sdcompress.quant.statistics import Limits
from sdcompress.sources.source import Source

_WANTED = {"unet": ("every input",)}
_CONDITION = "condition:"


@dataclass(frozen=True)
class Pool:
    """All trajectories. Conditions have a branch for guidance's negative prompt and one for the prompt."""

    points: torch.Tensor  # [prompts, points, channels, height, width] float16, as the denoiser was given them
    timesteps: torch.Tensor  # [points] float32
    ends: torch.Tensor  # [prompts, channels, height, width] float16, without noise
    conditions: Mapping[str, torch.Tensor]  # name -> [prompts, branches, ...]
    alphas: torch.Tensor  # [training timesteps] float32: the share of the signal's variance at each

    @property
    def branches(self) -> int:
        return next(iter(self.conditions.values())).shape[1]


def load_or_draw(
    source: Source,
    calibration: Calibration,
    listener: Listener = silent,
    cache: Path | None = None,
    device: str = "auto",
) -> Pool:
    """Return the trajectories of the calibration's prompts, from the cache or drawn and cached.

    Raises:
        SourceError: the pipeline cannot be calibrated, or its scheduler has no variances to add noise by.
    """
    check_calibration(source, _WANTED, "trajectories")
    schedule = getattr(open_without_models(source).scheduler, "alphas_cumprod", None)
    if schedule is None:
        raise SourceError(f"{source.name}: its scheduler adds no noise by variances (alphas_cumprod); no step recover")
    from sdcompress.backends.torch.loading import choose_device

    key = content_key(source, _WANTED, calibration, Limits(), choose_device(device).type)
    folder = (cache or cache_folder()) / "trajectories" / key
    recorder = _Recorder(folder, source.components["vae"].config, source.pipeline_class)
    count = calibration.prompt_count
    if len(recorder.whole()) < count:
        run = CalibrationRun(source, _WANTED, calibration, listener, device, recorder)
        run.denoise(run.encode_prompts())
    drawn = [recorder.load(number) for number in range(count)]
    conditions = [name for name in drawn[0] if name.startswith(_CONDITION)]
    return Pool(
        torch.stack([each["points"] for each in drawn]),
        drawn[0]["timesteps"],
        torch.cat([each["latents"] for each in drawn]),
        {name.removeprefix(_CONDITION): torch.stack([each[name] for each in drawn]) for name in conditions},
        schedule.to(torch.float32),
    )


class _Recorder(Observer):
    """Keeps what the denoiser is given, in a file for each finished prompt."""

    def __init__(self, folder: Path, vae_config: Mapping[str, Any], pipeline_class: str):
        self._folder = folder
        self._vae_config, self._pipeline_class = vae_config, pipeline_class
        self._points: list[torch.Tensor] = []
        self._timesteps: list[float] = []
        self._conditions: Outputs = {}

    @contextmanager
    def observe(self, component: str, model: nn.Module, runs: int) -> Iterator[None]:
        """Record the arguments of every run of the denoiser while in the context."""
        if component != "unet":
            yield
            return
        hook = model.register_forward_pre_hook(self._record, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def resume(self, component: str) -> list[Outputs]:
        """Return the ends of the finished trajectories."""
        if component != "unet":
            return []
        return [{"latents": self.load(number)["latents"].float()} for number in self.whole()]

    def finish_prompt(self, component: str, outputs: Sequence[Outputs]) -> None:
        """Write the trajectory that was drawn last."""
        if component != "unet":
            return
        tensors = {
            "points": torch.stack(self._points),
            "timesteps": torch.tensor(self._timesteps, dtype=torch.float32),
            "latents": self._scaled(outputs[-1]["latents"]).to("cpu", torch.float16),
            **self._conditions,
        }
        specs = {name: spec_of(tensor) for name, tensor in tensors.items()}
        write_sealed(self._file(len(outputs) - 1), specs, tensors.items())
        self._points, self._timesteps, self._conditions = [], [], {}

    def _scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Return what the VAE is given in the denoiser's scale. Only SDXL's pipeline uses their mean and deviation."""
        mean, deviation = self._vae_config.get("latents_mean"), self._vae_config.get("latents_std")
        if self._pipeline_class.startswith("StableDiffusionXL") and mean is not None and deviation is not None:
            columns = (latents.new_tensor(value).view(1, -1, 1, 1) for value in (mean, deviation))
            latents = (latents - next(columns)) / next(columns)
        return latents * self._vae_config.get("scaling_factor", 0.18215)  # AutoencoderKL's default

    def whole(self) -> range:
        """Return the numbers of the prompts whose files are there and undamaged, up to the first that is not."""
        number = 0
        while read_sealed(self._file(number)) is not None:
            number += 1
        return range(number)

    def load(self, number: int) -> Outputs:
        """Return the prompt's trajectory. SourceError where its file is missing or damaged."""
        ranges = read_sealed(self._file(number))
        if ranges is None:
            raise SourceError(f"{self._file(number)}: was written but is not whole; check the disk")
        return {name: read_tensor(where) for name, where in ranges.items()}

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:05}.safetensors"

    def _record(self, model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        sample, timestep = arguments
        self._points.append(sample[0].to("cpu", torch.float16))  # the same in both branches
        self._timesteps.append(float(timestep))
        if not self._conditions:
            added = named.get("added_cond_kwargs") or {}
            given = {"encoder_hidden_states": named["encoder_hidden_states"], **added}
            if named.get("timestep_cond") is not None:
                given["timestep_cond"] = named["timestep_cond"].expand(len(sample), -1)
            # SDXL's time_ids are sizes in pixels, which float16 may not hold exactly.
            self._conditions = {
                f"{_CONDITION}{name}": value.to("cpu", torch.float32 if name == "time_ids" else torch.float16)
                for name, value in given.items()
            }
