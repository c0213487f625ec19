"""Gradients of pictures on disk: one file for each prompt, in `gradients/KEY/` of the cache folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from sdcompress.backends.torch.input_statistics import content_key
from sdcompress.backends.torch.picture_gradients import Drawn, Wanted
from sdcompress.calibration.settings import Calibration
from sdcompress.errors import SourceError
from sdcompress.files.cache import cache_folder
from sdcompress.files.sealed_file import read_sealed, spec_of, write_sealed
from sdcompress.files.torch_tensors import read_tensor
from sdcompress.quant.statistics import Limits
from sdcompress.sources.source import Source

_PIXELS = "pixels"


class GradientFolder:
    """Where the gradients of one model, calibration and dtype are kept."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def of(
        cls, source: Source, wanted: Wanted, calibration: Calibration, device: str, dtype: torch.dtype
    ) -> GradientFolder:
        """Return the folder whose name is a digest of all that the gradients depend on."""
        sorted_layers = {name: tuple(sorted(layers)) for name, layers in sorted(wanted.items())}
        key = content_key(source, sorted_layers, calibration, Limits(), device)
        name = hashlib.sha256(f"gradients 2 {dtype} {key}".encode()).hexdigest()
        return cls(cache_folder() / "gradients" / name[:32])

    def load(self, index: int) -> Drawn | None:
        """Return what was found for the prompt; None where nothing is stored, or a damaged file."""
        ranges = read_sealed(self._file(index))
        if ranges is None:
            return None
        pixels = int(read_tensor(ranges.pop(_PIXELS)))
        rows: dict[str, dict[str, torch.Tensor]] = {}
        for name, where in ranges.items():
            component, _, layer = name.partition(":")
            rows.setdefault(component, {})[layer] = read_tensor(where)
        return Drawn(rows, pixels)

    def save(self, index: int, drawn: Drawn) -> None:
        """Keep what was found for the prompt."""
        tensors = {
            f"{component}:{layer}": found
            for component, layers in sorted(drawn.rows.items())
            for layer, found in sorted(layers.items())
        }
        tensors[_PIXELS] = torch.tensor(drawn.pixels)
        write_sealed(self._file(index), {name: spec_of(each) for name, each in tensors.items()}, tensors.items())

    def all(self, indices: Sequence[int]) -> Drawn:
        """Return what was found for these prompts, all of which are stored: rows are [prompts, 3, out]."""
        found: dict[str, dict[str, list[torch.Tensor]]] = {}
        pixels = 0
        for index in indices:
            drawn = self.load(index)
            if drawn is None:
                raise SourceError(f"{self._file(index)}: was written but is not whole; check the disk")
            pixels = drawn.pixels
            for component, layers in drawn.rows.items():
                for layer, rows in layers.items():
                    found.setdefault(component, {}).setdefault(layer, []).append(rows)
        stacked = {
            component: {layer: torch.stack(rows) for layer, rows in layers.items()}
            for component, layers in found.items()
        }
        return Drawn(stacked, pixels)

    def _file(self, index: int) -> Path:
        return self.path / f"{index}.safetensors"
