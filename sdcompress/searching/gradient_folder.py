"""Gradients of pictures on disk: one file for each prompt, in `gradients/KEY/` of the cache folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from sdcompress.backends.torch.input_statistics import content_key
from sdcompress.backends.torch.picture_gradients import Drawn, Wanted
from sdcompress.calibration.settings import Calibration
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
        name = hashlib.sha256(f"gradients 1 {dtype} {key}".encode()).hexdigest()
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
            f"{component}:{layer}": energies
            for component, layers in sorted(drawn.rows.items())
            for layer, energies in sorted(layers.items())
        }
        tensors[_PIXELS] = torch.tensor(drawn.pixels)
        write_sealed(self._file(index), {name: spec_of(each) for name, each in tensors.items()}, tensors.items())

    def mean(self, indices: Sequence[int]) -> Drawn:
        """Return the mean row energies of these prompts, all of which are stored, added up in their order."""
        total: dict[str, dict[str, torch.Tensor]] = {}
        pixels = 0
        for index in indices:
            drawn = self.load(index)
            assert drawn is not None, f"{self._file(index)} is missing"
            pixels = drawn.pixels
            for component, layers in drawn.rows.items():
                sums = total.setdefault(component, {})
                for layer, energies in layers.items():
                    sums[layer] = sums[layer] + energies if layer in sums else energies
        means = {
            component: {layer: energies / len(indices) for layer, energies in layers.items()}
            for component, layers in total.items()
        }
        return Drawn(means, pixels)

    def _file(self, index: int) -> Path:
        return self.path / f"{index}.safetensors"
