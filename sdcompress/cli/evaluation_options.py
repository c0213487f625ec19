"""The options that `evaluate` and `run` share, and those of them that `generate` has too."""

from __future__ import annotations

from collections.abc import Callable

from sdcompress.cli.options_from_model import option_type, with_model_options
from sdcompress.evaluation.settings import EvaluationSettings

Device = option_type(EvaluationSettings, "device")
Dtype = option_type(EvaluationSettings, "dtype")
Steps = option_type(EvaluationSettings, "num_inference_steps")
Guidance = option_type(EvaluationSettings, "guidance_scale")
Strength = option_type(EvaluationSettings, "strength")
ImageFile = option_type(EvaluationSettings, "image")
MaskFile = option_type(EvaluationSettings, "mask")
Threads = option_type(EvaluationSettings, "threads")
LowMemory = option_type(EvaluationSettings, "low_memory")


def with_evaluation_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with the evaluation's options added; it gets them as its argument `settings`."""
    return with_model_options(command, EvaluationSettings, "settings")
