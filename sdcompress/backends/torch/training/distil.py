"""Training a pruned denoiser to give the predictions and features of the original."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sdcompress.backends.component import TrainingContext
from sdcompress.backends.torch.source_parts import empty_component, fill_model, open_component
from sdcompress.backends.torch.training import checkpoint
from sdcompress.backends.torch.training.adapters import add_adapters, merge_adapters
from sdcompress.backends.torch.training.average import update
from sdcompress.backends.torch.training.batches import Batch, draw_batch
from sdcompress.backends.torch.training.losses import feature_loss, output_loss, record_features, stages_of
from sdcompress.backends.torch.training.pool import Pool, load_or_draw
from sdcompress.backends.torch.training.settings import TrainingSettings
from sdcompress.errors import Problem, TrainingError
from sdcompress.progress import ProgressEvent, Unit
from sdcompress.sources.source import is_buffer
from sdcompress.sources.spec import ComponentSpec
from sdcompress.sources.tensor_names import name_in_model

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sdcompress.calibration.settings import Calibration

CHECKPOINT_NAME = "checkpoint.safetensors"
_SHOWN_LOSSES = 200  # points of the loss curve that the manifest keeps
_RECENT_STEPS = 20  # whose mean loss the progress bar shows


@dataclass(frozen=True)
class Recovered:
    """A trained component: its tensors under the names in files, in float32 on the CPU, and facts for the manifest."""

    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]


def recover(
    spec: ComponentSpec,
    read: Callable[[str], torch.Tensor],
    settings: TrainingSettings,
    calibration: Calibration,
    context: TrainingContext,
) -> Recovered:
    """Train the component, starting from the tensors that `read` gives, and return it.

    Training continues from the checkpoint in the context's folder if there is one.

    Args:
        spec: the pruned component.
        calibration: what the original draws.

    Raises:
        TrainingError: the loss or a gradient became NaN or infinite; the last checkpoint is kept.
    """
    from accelerate import Accelerator

    accelerator = Accelerator()
    with accelerator.main_process_first():  # which draws, for all of them
        pool = load_or_draw(context.source, calibration, context.listener, device=accelerator.device.type)
    student = fill_model(empty_component(spec), spec.tensors, read, accelerator.device, f"the pruned {spec.name}")
    teacher = open_component(context.source, spec.name, accelerator.device)
    _prepare(student, settings, accelerator.device)
    run = _Run(student, teacher, pool, settings, context, accelerator, spec.name)
    run.train()
    with torch.no_grad():
        for name, parameter in run.trained.parameters.items():
            parameter.copy_(run.trained.average[name])
        if settings.lora_rank is not None:
            merge_adapters(student)
    tensors = {
        name: student.get_parameter(place).detach().cpu()
        for name in spec.tensors
        if not is_buffer(name) and (place := name_in_model(student, name)) is not None
    }
    facts = run.facts()
    del run, teacher, student
    accelerator.free_memory()  # which it holds, and on a GPU torch too, away from the processes that evaluate
    gc.collect()
    if accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
    return Recovered(tensors, facts)


def _prepare(student: nn.Module, settings: TrainingSettings, device: torch.device) -> None:
    """Make the parameters trainable that are to be trained."""
    from diffusers.models.attention_processor import AttnProcessor

    if settings.lora_rank is None:
        student.requires_grad_(True)
    else:
        add_adapters(student, settings.lora_rank, settings.seed)
    if device.type == "cpu":  # where the backward pass of scaled_dot_product_attention is much slower
        student.set_attn_processor(AttnProcessor())  # type: ignore[operator]


class _Run:
    """One training run: its state and its loop."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        pool: Pool,
        settings: TrainingSettings,
        context: TrainingContext,
        accelerator: Accelerator,
        component: str,
    ):
        self._settings, self._context, self._accelerator = settings, context, accelerator
        self._teacher, self._pool, self._component = teacher, pool, component
        stages = stages_of(teacher)
        self._stages = tuple(stage for stage in stages_of(student) if stage in stages)
        self._student = student
        parameters = {name: value for name, value in student.named_parameters() if value.requires_grad}
        optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate)
        average = {name: value.detach().clone() for name, value in parameters.items()}
        self.trained = checkpoint.Trained(parameters, average, optimizer)
        self._file = context.folder / CHECKPOINT_NAME
        self._progress = checkpoint.restore(self._file, self.trained) or checkpoint.Progress()
        self._saved_step = self._progress.step
        rates = self._progress.learning_rates
        if not rates or list(rates.values())[-1] != settings.learning_rate:
            rates[str(self._progress.step)] = settings.learning_rate
        self._wrapped = accelerator.prepare(student)  # for several processes: adds gradients up

    def train(self) -> None:
        """Take the steps that are left, with checkpoints in between and one at the end."""
        began, before = time.perf_counter(), self._progress.seconds
        saved = began
        with (
            record_features(self._teacher, self._stages) as wanted,
            record_features(self._student, self._stages) as given,
        ):
            while not self._done():
                loss = self._step(wanted, given)
                loss, self._progress.seconds = self._agreed(loss, before + time.perf_counter() - began)
                self._progress.losses.append(loss)
                self._progress.step += 1
                self._report()
                due = time.perf_counter() - saved >= 60 * self._settings.checkpoint_minutes
                if due or self._done():
                    self._save()
                    saved = time.perf_counter()

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says of the run."""
        progress, settings = self._progress, self._settings
        losses = progress.losses
        width = max(1, math.ceil(len(losses) / _SHOWN_LOSSES))
        chunks = [losses[start : start + width] for start in range(0, len(losses), width)]
        size = settings.batch_size * settings.gradient_accumulation * self._accelerator.num_processes
        return {
            "steps": progress.step,
            "seconds": progress.seconds,
            "samples_per_step": size,
            "trained_parameters": sum(value.numel() for value in self.trained.parameters.values()),
            "trajectories": {"prompts": len(self._pool.points), "points": len(self._pool.timesteps)},
            "features": list(self._stages),
            "learning_rates": progress.learning_rates,
            "device": str(self._accelerator.device),
            # Means of so many steps each.
            "loss": {"steps_each": width, "means": [sum(chunk) / len(chunk) for chunk in chunks]},
        }

    def _done(self) -> bool:
        done, total, _ = self._extent()
        return done >= total

    def _extent(self) -> tuple[float, float, Unit]:
        """Return how much is done, how much there is to do, and the unit of both."""
        settings, progress = self._settings, self._progress
        if settings.steps is not None:
            return progress.step, settings.steps, "steps"
        return progress.seconds, 60 * (settings.minutes or 0), "seconds"

    def _step(self, wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> float:
        """Sum up the gradients of the step's batches and change the parameters; return the mean loss."""
        settings, accelerator, step = self._settings, self._accelerator, self._progress.step
        optimizer = self.trained.optimizer
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, (step + 1) / (settings.warmup_steps + 1))
        total = torch.zeros((), device=accelerator.device)
        for part in range(settings.gradient_accumulation):
            number = (step * settings.gradient_accumulation + part) * accelerator.num_processes
            batch = draw_batch(
                self._pool, settings.batch_size, settings.trajectory_share, settings.seed,
                number + accelerator.process_index, accelerator.device,
            )  # fmt: skip
            last = part == settings.gradient_accumulation - 1
            with nullcontext() if last else accelerator.no_sync(self._wrapped):
                loss = self._loss(batch, wanted, given) / settings.gradient_accumulation
                accelerator.backward(loss)
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.trained.parameters.values(), settings.max_gradient_norm)
        loss_value, norm_value = torch.stack([total, norm]).tolist()  # the only time in a step that a GPU is waited for
        self._check(loss_value, norm_value)
        optimizer.step()
        optimizer.zero_grad()
        update(self.trained.average.values(), self.trained.parameters.values(), step, settings.ema_decay)
        return loss_value

    def _loss(
        self, batch: Batch, wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        half = self._settings.dtype == "bfloat16"
        with torch.autocast(self._accelerator.device.type, torch.bfloat16) if half else nullcontext():
            with torch.no_grad():
                target = batch.run(self._teacher)
            prediction = batch.run(self._wrapped)
        loss = output_loss(prediction, target)
        if self._settings.feature_loss_weight:
            loss = loss + self._settings.feature_loss_weight * feature_loss(given, wanted)
        return loss

    def _agreed(self, loss: float, seconds: float) -> tuple[float, float]:
        """Return the mean over all processes, so that they stop at the same step."""
        if self._accelerator.num_processes == 1:
            return loss, seconds
        both = torch.tensor([loss, seconds], dtype=torch.float64, device=self._accelerator.device)
        mean = self._accelerator.reduce(both, "mean").tolist()
        return mean[0], mean[1]

    def _check(self, loss: float, norm: float) -> None:
        """Raise TrainingError if the step would spoil the parameters. Gradients are the same in all processes."""
        for what, value in (("loss", loss), ("gradient", norm)):
            if not math.isfinite(value):
                kept = f"the checkpoint of step {self._saved_step} is kept" if self._saved_step else "no checkpoint yet"
                raise TrainingError(
                    Problem(
                        f"{self._component}.recover.learning_rate",
                        f"the {what} is {value} at step {self._progress.step} ({kept}); lower it "
                        f"({self._settings.learning_rate:g}) and go on with --resume",
                    )
                )

    def _report(self) -> None:
        progress = self._progress
        recent = progress.losses[-_RECENT_STEPS:]
        note = f"step {progress.step:,}, loss {sum(recent) / len(recent):.4f}"
        done, total, unit = self._extent()
        self._context.listener(ProgressEvent("training", self._component, min(done, total), total, unit, note))

    def _save(self) -> None:
        if self._accelerator.is_main_process:
            checkpoint.save(self._file, self._progress, self.trained)
        self._accelerator.wait_for_everyone()
        self._saved_step = self._progress.step
