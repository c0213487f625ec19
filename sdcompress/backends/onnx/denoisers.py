"""Replacements of UNets, transformers and ControlNets, which stock pipelines call and ONNX Runtime computes."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.models.controlnets.controlnet import ControlNetOutput
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from sdcompress.backends.onnx.components import OnnxComponent
from sdcompress.backends.onnx.runtime import RunnableGraph
from sdcompress.families.architecture import DOWN_RESIDUAL, MID_RESIDUAL

Timestep = torch.Tensor | float | int


class OnnxDenoiser(OnnxComponent):
    """Replaces a UNet or a transformer that denoises, whatever the arguments of its class's forward pass are called."""

    _output: Any = Transformer2DModelOutput

    def __init__(self, graph: RunnableGraph, config: Any, class_name: str):
        super().__init__(graph, config)
        self._signature = inspect.signature(getattr(diffusers, class_name).forward)

    @contextlib.contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        """Do nothing. FLUX's pipeline opens this context around a call, and a graph caches nothing."""
        yield

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(self._signature.bind(self, *args, **kwargs).arguments)
        given.pop("self")
        return_dict = given.pop("return_dict", True)
        given |= given.pop("added_cond_kwargs", None) or {}
        down = given.pop("down_block_additional_residuals", None) or ()
        given |= {f"{DOWN_RESIDUAL}{index}": residual for index, residual in enumerate(down)}
        given[MID_RESIDUAL] = given.pop("mid_block_additional_residual", None)
        inputs = {name: value for name, value in given.items() if name in self.graph.inputs}
        _refuse_others(self, {name: value for name, value in given.items() if name not in inputs})
        if "timestep" in inputs:
            inputs["timestep"] = _timestep_of(self, inputs["timestep"])
        (out,) = self._run(inputs).values()
        return self._output(sample=out) if return_dict else (out,)


class OnnxUNet(OnnxDenoiser):
    """Replaces UNet2DConditionModel."""

    _output = UNet2DConditionOutput

    @property
    def add_embedding(self) -> Any:
        """The width that SDXL's pipelines read before they make `time_ids`."""
        width = self.config.projection_class_embeddings_input_dim
        return SimpleNamespace(linear_1=SimpleNamespace(in_features=width))


class OnnxControlNet(OnnxComponent, diffusers.ControlNetModel):
    """Replaces ControlNetModel. Pipelines check that it is an instance of it."""

    def __init__(self, graph: RunnableGraph, config: Any):
        OnnxComponent.__init__(self, graph, config)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: Timestep,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: torch.Tensor,
        conditioning_scale: float = 1.0,
        timestep_cond: torch.Tensor | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        _refuse_others(self, {"guess_mode": guess_mode, **others})
        inputs = {
            "sample": sample,
            "timestep": _timestep_of(self, timestep),
            "encoder_hidden_states": encoder_hidden_states,
            "controlnet_cond": controlnet_cond,
            "timestep_cond": timestep_cond,
            **(added_cond_kwargs or {}),
        }
        outputs = {name: value * conditioning_scale for name, value in self._run(inputs).items()}
        mid = outputs.pop(MID_RESIDUAL)
        down = tuple(outputs[f"{DOWN_RESIDUAL}{index}"] for index in range(len(outputs)))
        if not return_dict:
            return down, mid
        return ControlNetOutput(down_block_res_samples=down, mid_block_res_sample=mid)


def _refuse_others(component: OnnxComponent, others: dict[str, Any]) -> None:
    """Raise UserError if an argument that the graph does not take has a value; False and {} count as none."""
    for name, value in others.items():
        if value is not None and value is not False and value != {}:
            component.refuse(f"takes no {name} (adapters, LoRA and the like need the torch pipeline)")


def _timestep_of(component: OnnxComponent, timestep: Timestep) -> torch.Tensor:
    """Return the timestep of the whole batch, with as many axes as the graph's input."""
    time = torch.as_tensor(timestep).reshape(-1)
    if component.graph.inputs["timestep"][1] == 0:
        if len(time) != 1:
            component.refuse(f"takes one timestep for the whole batch, not {len(time)}")
        time = time.reshape(())
    return time
