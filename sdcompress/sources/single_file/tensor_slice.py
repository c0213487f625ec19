"""`TensorSlice`: where a checkpoint in the original layout holds a tensor of diffusers."""

from __future__ import annotations

from dataclasses import dataclass

from sdcompress.files.safetensors_file import Arrangement


@dataclass(frozen=True)
class TensorSlice:
    """Rows of a tensor in a checkpoint: of `of` equal slices along the first axis, those from `first` to before `last`.

    Attributes:
        name: the tensor's name in the checkpoint, without the component's prefix.
        arrangement: how the stored bytes are turned into those of diffusers' tensor.
    """

    name: str
    first: int = 0
    last: int = 1
    of: int = 1
    arrangement: Arrangement = "plain"
