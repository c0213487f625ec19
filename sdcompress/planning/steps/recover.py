"""recover: train a pruned UNet to give the predictions of the original, without any pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sdcompress.backends.component import Component
from sdcompress.backends.torch.training.settings import TrainingSettings
from sdcompress.calibration.settings import Calibration
from sdcompress.calibration.training_prompts import training_prompts
from sdcompress.errors import InternalError, Problem, ProblemList, UserError
from sdcompress.files.safetensors_file import FLOAT_DTYPES
from sdcompress.planning.steps import Planned, Stage, Step
from sdcompress.planning.training_memory import activation_bytes, checkpoint_bytes, latent_elements, state_bytes
from sdcompress.quant.format import overflows
from sdcompress.sources.source import Source
from sdcompress.sources.spec import ComponentSpec

if TYPE_CHECKING:
    import torch

    from sdcompress.backends.torch.training.distil import Recovered

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
# Trajectories start from other noise than evaluations: torch's generator uses the low 32 bits of a seed.
_FIRST_SEED = 2**30
_TRAJECTORY_STEPS = 25  # where the pipeline's prompt set does not say how many


class Recover(TrainingSettings, Step):
    """Train a pruned UNet to give the predictions and features of the original, without any pictures.

    The original draws pictures of prompts once. The pruned UNet is then trained on what the original's UNet was given
    while it drew, and on the pictures' latents with new noise (the distillation of BK-SDM, arXiv:2305.15798, section
    3.2, without its loss on a data set). The result is the moving average of the weights.

    Examples:
        recover: {minutes: 10}
    """

    kind = "recover"
    stage = Stage.RECOVER
    follows: ClassVar[str | None] = "prune"
    changeable: ClassVar[frozenset[str]] = frozenset({"minutes", "steps", "learning_rate", "checkpoint_minutes"})

    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        problems = ProblemList()
        if (self.minutes is None) == (self.steps is None):
            said = "both given" if self.steps is not None else "missing"
            problems.add("", f"minutes and steps: {said}; give one of them, such as minutes: 10")
        if spec.class_name != "UNet2DConditionModel":
            problems.add("", f"{spec.name} is a {spec.class_name}; only a UNet2DConditionModel can be recovered")
        problems.raise_any()
        length = f"{self.minutes:g} minutes" if self.minutes is not None else f"{self.steps:,} steps"
        what = "all weights" if self.lora_rank is None else f"low-rank updates of rank {self.lora_rank}"
        notes = (
            f"trained for {length} to do what the original does: {what}, batches of "
            f"{self.batch_size * self.gradient_accumulation}",
            f"the original draws {self.prompt_count} pictures for that first, unless the cache has them",
        )
        pool = 2 * self.prompt_count * latent_elements(spec) * (_TRAJECTORY_STEPS + 1)
        working = state_bytes(spec, self.lora_rank) + activation_bytes(spec, self.batch_size) + pool
        return Planned(
            spec, notes=notes, working_bytes=working, target=target, trains=True,
            scratch_bytes=2 * checkpoint_bytes(spec, self.lora_rank),  # the last one stays while the next is written
        )  # fmt: skip

    def pipeline_problems(self, source: Source) -> list[Problem]:
        problems = ProblemList()
        if source.pipeline_class not in PIPELINES:
            what = f"are drawn with {' or '.join(PIPELINES)}, and {source.name} is a {source.pipeline_class}"
            problems.add("prompts", f"{what}; leave this step out")
            return problems
        with problems.collect():
            self._calibration(source)
        return problems

    def apply(self, component: Component, planned: Planned) -> Component:
        from sdcompress.files.torch_tensors import TORCH_DTYPE

        if component.training is None:
            raise InternalError(f"{component.spec.name}: recover was given no training context")
        context = component.training
        trained: list[Recovered] = []

        def read(name: str) -> torch.Tensor:
            if not trained:
                from sdcompress.backends.torch.training.distil import recover

                calibration = self._calibration(context.source)
                trained.append(recover(component.spec, component.read, self, calibration, context))
                component.results.facts["recovery"] = dict(trained[0].facts)
            spec = planned.spec.tensors[name]
            if name not in trained[0].tensors or spec.dtype not in FLOAT_DTYPES:
                return component.read(name)
            tensor = trained[0].tensors[name]
            result = tensor.to(TORCH_DTYPE[spec.dtype])
            if overflows(result, tensor):
                raise UserError(
                    f"{component.spec.name}.{name}: came out as {float(tensor.abs().max()):.3g}, too large for "
                    f"{spec.dtype}; lower recover.learning_rate"
                )
            return result

        return component.becomes(planned.spec, read)

    def _calibration(self, source: Source) -> Calibration:
        """Return the prompts, seed and sampler settings of the trajectories."""
        if self.prompts is not None:
            prompts: tuple[str, ...] = self.prompts
            steps = training_prompts(source, 1).num_inference_steps
        else:
            chosen = training_prompts(source, self.prompt_count)
            prompts, steps = chosen.prompts, chosen.num_inference_steps
        return Calibration(
            prompts=prompts,
            prompt_count=len(prompts),
            seed=self.seed + _FIRST_SEED,
            num_inference_steps=steps or _TRAJECTORY_STEPS,
        )
