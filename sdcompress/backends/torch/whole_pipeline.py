"""A whole pipeline in memory, which draws the pictures of a calibration from prompt to picture in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sdcompress.backends.torch.source_parts import open_component
from sdcompress.backends.torch.trajectories import BESIDE_THE_DENOISER, COMPONENTS, CalibrationRun
from sdcompress.calibration.settings import Calibration
from sdcompress.errors import SourceError
from sdcompress.sources.source import Source
from sdcompress.sources.tensor_names import name_in_model


class WholePipeline:
    """The pipeline with all components that a picture needs; it has no safety checker.

    Args:
        calibration: prompts, seeds and sampler of the pictures.
        device: where it runs, such as `cpu` or `auto`.
        dtype: of its weights.

    Attributes:
        models: component -> its model.
        pipeline: the stock pipeline with these models.
    """

    def __init__(self, source: Source, calibration: Calibration, device: str, dtype: torch.dtype = torch.float32):
        self._run = CalibrationRun(source, {}, calibration, device=device)
        names = [name for name in (*COMPONENTS, *BESIDE_THE_DENOISER) if name in source.components]
        self.models: dict[str, Any] = {name: open_component(source, name, self._run.device, dtype) for name in names}
        self.pipeline = self._run.assemble(**self.models)

    @property
    def count(self) -> int:
        """Prompts of the calibration."""
        return len(self._run.prompts.prompts)

    def arguments(self, index: int) -> dict[str, Any]:
        """Return the pipeline's arguments for the picture of a prompt."""
        return {"prompt": self._run.prompts.prompts[index], **self._run.inputs(self.pipeline, index)}

    def layer(self, component: str, layer: str) -> nn.Module:
        """Return a layer by its name in files. SourceError where there is none."""
        place = name_in_model(self.models[component], layer)
        if place is None:
            raise SourceError(f"{component}.{layer}: {type(self.models[component]).__name__} has no such layer")
        return self.models[component].get_submodule(place)  # type: ignore[no-any-return]
