"""Input statistics of layers, from the cache or gathered from calibration trajectories and cached.

They are in `statistics/KEY/COMPONENT.safetensors` of the cache folder; KEY is a digest of all that they depend on. A
run that is killed leaves its progress beside them, from which the next one continues.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.calibration.settings import FIRST_SEED, Calibration, choose_prompts
from sdcompress.environment import installed_versions
from sdcompress.errors import SourceError
from sdcompress.files.cache import cache_folder
from sdcompress.files.safetensors_file import TensorRange
from sdcompress.files.sealed_file import Spec, read_chunks, read_sealed, spec_of, write_sealed
from sdcompress.files.torch_tensors import read_tensor
from sdcompress.progress import Listener, silent
from sdcompress.quant.statistics import LayerStatistics, Limits
from sdcompress.sources.source import Source
from sdcompress.version import __version__

if TYPE_CHECKING:
    import torch

    from sdcompress.backends.torch.gathering import Accumulators, Progress

Wanted = Mapping[str, Sequence[str]]  # component -> names of layers, as files call them

_LIBRARIES = ("torch", "diffusers", "transformers")  # those that compute the trajectories


def load_or_gather(
    source: Source,
    wanted: Wanted,
    calibration: Calibration,
    listener: Listener = silent,
    cache: Path | None = None,
    device: str = "auto",
    limits: Limits | None = None,
) -> dict[str, StatisticsFile]:
    """Return component -> layer -> input statistics of the wanted Conv2d and Linear layers.

    What the cache has is read, one layer at a time; the rest is gathered. A damaged file is gathered again.

    Args:
        listener: told of the runs, where statistics have to be gathered.
        cache: the cache folder; sdcompress's own if None.

    Raises:
        SourceError: the pipeline or a layer cannot be calibrated, or values are NaN or infinite.
    """
    wanted = {component: tuple(sorted(set(layers))) for component, layers in sorted(wanted.items()) if layers}
    if not wanted:
        return {}
    from sdcompress.backends.torch.gathering import gather_statistics
    from sdcompress.backends.torch.loading import choose_device
    from sdcompress.backends.torch.trajectories import check_calibration

    check_calibration(source, wanted, "input statistics")
    limits = limits or Limits()
    key = content_key(source, wanted, calibration, limits, choose_device(device).type)
    folder = StatisticsFolder((cache or cache_folder()) / "statistics" / key)
    found = {component: folder.statistics(component) for component in wanted}
    missing = {component: layers for component, layers in wanted.items() if found[component] is None}
    if missing:
        gather_statistics(folder, source, missing, calibration, listener, device, limits)
        folder.delete_progress()
    statistics = {}
    for component, each in found.items():
        whole = folder.statistics(component) if each is None else each
        if whole is None:
            raise SourceError(f"{folder.path}: {component}.safetensors was written but is not whole; check the disk")
        statistics[component] = whole
    return statistics


class StatisticsFile(Mapping[str, LayerStatistics]):
    """Layer -> statistics, each read from the file whenever it is asked for."""

    def __init__(self, ranges: Mapping[str, TensorRange]):
        self._ranges = ranges
        self._layers = [name.removesuffix(".count") for name in ranges if name.endswith(".count")]

    def __getitem__(self, layer: str) -> LayerStatistics:
        count, mean = self._ranges[f"{layer}.count"], self._ranges[f"{layer}.mean"]
        blocks: list[torch.Tensor] = []
        while (where := self._ranges.get(f"{layer}.moments.{len(blocks)}")) is not None:
            blocks.append(read_tensor(where))
        return LayerStatistics(int(read_tensor(count)), read_tensor(mean), tuple(blocks))

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


class StatisticsFolder:
    """The files of one key: statistics of finished components, and the progress of a run that is not finished."""

    def __init__(self, path: Path):
        self.path = path
        self._progress = path / "progress"

    def statistics(self, component: str) -> StatisticsFile | None:
        """Return the component's statistics; None where there is no file or a damaged one."""
        ranges = read_sealed(self.path / f"{component}.safetensors")
        return None if ranges is None else StatisticsFile(ranges)

    def save_statistics(self, component: str, accumulators: Accumulators) -> None:
        """Write the component's statistics, one layer at a time."""
        from sdcompress.backends.torch.gathering import statistics_of

        specs: dict[str, Spec] = {}
        for layer, accumulator in sorted(accumulators.items()):
            specs[f"{layer}.count"] = ("I64", ())
            specs[f"{layer}.mean"] = ("F32", (sum(accumulator.sizes),))
            specs |= {f"{layer}.moments.{i}": ("F32", (size, size)) for i, size in enumerate(accumulator.sizes)}

        def tensors() -> Iterator[tuple[str, torch.Tensor]]:
            import torch

            for layer, accumulator in sorted(accumulators.items()):
                each = statistics_of(accumulator, component, layer)
                yield f"{layer}.count", torch.tensor(each.count)
                yield f"{layer}.mean", each.mean
                for place, block in enumerate(each.moments):
                    yield f"{layer}.moments.{place}", block

        write_sealed(self.path / f"{component}.safetensors", specs, tensors())

    def load_progress(self, component: str) -> Progress:
        """Return the progress that was saved last; empty where there is none or it is damaged."""
        from sdcompress.backends.torch.gathering import Progress

        ranges = read_sealed(self._progress / f"{component}.safetensors")
        if ranges is None:
            return Progress()
        outputs: list[dict[str, torch.Tensor]] = [{} for _ in range(int(read_tensor(ranges["finished"])))]
        states: dict[str, dict[str, torch.Tensor]] = {}
        for name, where in ranges.items():
            kind, _, rest = name.partition(":")
            owner, _, leaf = rest.partition(":")
            if kind == "output":
                outputs[int(owner)][leaf] = read_tensor(where)
            elif kind == "state":
                states.setdefault(owner, {})[leaf] = read_tensor(where)
        return Progress(outputs, states)

    def save_progress(self, component: str, progress: Progress) -> None:
        """Write the progress in place of what was saved before."""
        import torch

        tensors = {"finished": torch.tensor(len(progress.outputs))}
        for index, output in enumerate(progress.outputs):
            tensors |= {f"output:{index}:{name}": value for name, value in output.items()}
        for layer, state in progress.states.items():
            tensors |= {f"state:{layer}:{name}": value for name, value in state.items()}
        specs = {name: spec_of(tensor) for name, tensor in tensors.items()}
        write_sealed(self._progress / f"{component}.safetensors", specs, tensors.items())

    def delete_progress(self) -> None:
        """Delete what was kept to resume from."""
        shutil.rmtree(self._progress, ignore_errors=True)


def content_key(source: Source, wanted: Wanted, calibration: Calibration, limits: Limits, device: str) -> str:
    """Return the SHA-256 of all that statistics depend on: weights, configs, tokenizers, settings, versions."""
    import torch

    from sdcompress.backends.torch.trajectories import BESIDE_THE_DENOISER, COMPONENTS
    from sdcompress.calibration.input_pictures import wanted_pictures

    order = (*COMPONENTS, *BESIDE_THE_DENOISER)
    present = [component for component in order if component in source.components]
    last = max(order.index(component) for component in wanted)
    if wanted_pictures(source.pipeline_class):  # then the VAE, and what runs beside the denoiser, run before it
        last = len(order) - 1
    prompts = choose_prompts(calibration, source)
    versions = installed_versions()
    facts: dict[str, Any] = {
        "sdcompress": __version__,
        "versions": {name: versions.get(name) for name in _LIBRARIES},
        "device": device,
        "model_index": dict(source.model_index),
        "configs": {component: dict(source.components[component].config) for component in present},
        # Without the set's name, and without how ranges are chosen from histograms.
        "prompts": [prompts.prompts, prompts.num_inference_steps, prompts.guidance_scale],
        "calibration": [FIRST_SEED + calibration.seed, calibration.height, calibration.width],
        "wanted": {component: list(layers) for component, layers in wanted.items()},
        "limits": asdict(limits),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for file in sorted(source.other_files):
        if file.parts[0].startswith(("tokenizer", "scheduler")):
            content = source.read_file(file)
            digest.update(f"{file.as_posix()} {len(content)}\n".encode() + content)
    for component in present:
        if order.index(component) <= last and component in source.readers:
            for name in sorted(source.components[component].tensors):
                tensor = source.readers[component](name).contiguous()
                digest.update(f"{component} {name} {tensor.dtype} {list(tensor.shape)}\n".encode())
                digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        elif order.index(component) <= last:
            for name, where in sorted(source.tensors[component].items()):
                digest.update(f"{component} {name} {where.dtype} {list(where.shape)}\n".encode())
                for chunk in read_chunks(where):
                    digest.update(chunk)
    return digest.hexdigest()
