"""Checkpoints of a training run: one sealed file, which the next checkpoint replaces once it is complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from sdcompress.files.sealed_file import read_sealed, spec_of, write_sealed
from sdcompress.files.torch_tensors import read_tensor

_MOMENTS = ("exp_avg", "exp_avg_sq")
_STATE = "state"


@dataclass
class Progress:
    """How far a run is: the loss of each step, and the step at which each learning rate started."""

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    learning_rates: dict[str, float] = field(default_factory=dict)  # first step -> rate


@dataclass(frozen=True)
class Trained:
    """What training changes: the parameters by name, their averages, and the optimizer with its moments."""

    parameters: Mapping[str, torch.nn.Parameter]
    average: Mapping[str, torch.Tensor]
    optimizer: torch.optim.Optimizer


def save(file: Path, progress: Progress, trained: Trained) -> None:
    """Write all that the run needs to continue."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in trained.parameters.items():
        moments = trained.optimizer.state[parameter]
        tensors[f"parameter:{name}"] = parameter
        tensors[f"average:{name}"] = trained.average[name]
        tensors |= {f"{moment}:{name}": moments[moment] for moment in _MOMENTS}
    text = torch.tensor(list(json.dumps(asdict(progress)).encode()), dtype=torch.uint8)
    specs = {name: spec_of(tensor) for name, tensor in tensors.items()}
    specs[_STATE] = ("U8", (len(text),))
    write_sealed(file, specs, {**tensors, _STATE: text}.items())


@torch.no_grad()
def restore(file: Path, trained: Trained) -> Progress | None:
    """Return the saved progress and restore the trained tensors; None if the file is missing or damaged."""
    ranges = read_sealed(file)
    if ranges is None:
        return None
    progress = Progress(**json.loads(bytes(read_tensor(ranges[_STATE]).tolist())))
    for name, parameter in trained.parameters.items():
        parameter.copy_(read_tensor(ranges[f"parameter:{name}"]))
        trained.average[name].copy_(read_tensor(ranges[f"average:{name}"]))
        moments = {moment: read_tensor(ranges[f"{moment}:{name}"]).to(parameter.device) for moment in _MOMENTS}
        trained.optimizer.state[parameter] = {"step": torch.tensor(float(progress.step)), **moments}
    return progress
