"""The `weight` of a quantized layer, which is computed from its codes each time it is read."""

from __future__ import annotations

from typing import Any

import torch

from sdcompress.errors import ArtifactError

_READ_ONLY = (
    "the weight of a quantized layer is computed from its codes and cannot be written; keep the LoRA as an adapter "
    "(load_lora_weights without fuse_lora), or fuse it into the original pipeline and compress that"
)


class ComputedWeight(torch.Tensor):
    """A tensor whose `data` cannot be replaced: PEFT merges a LoRA like that, and the change would be lost."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # results of operations are plain tensors

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return self.as_subclass(torch.Tensor)

    @data.setter
    def data(self, _: Any) -> None:
        raise ArtifactError(_READ_ONLY)
