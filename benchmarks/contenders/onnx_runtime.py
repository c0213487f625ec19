"""A component on ONNX Runtime's CPU provider: optimum's plain export, or what an sdcompress recipe made."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.component_worker import Runner
from benchmarks.contenders.inputs import read_settings
from benchmarks.contenders.job import OUTPUTS, TEXT_OUTPUTS, Job

Steps = Sequence[Mapping[str, Any]]
NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


def make(
    job: Job, recipe: str | None, calibrated: bool = False, unet_first: Steps = (), unet_last: Steps = ()
) -> dict[str, Any]:
    """Exports the whole pipeline: with optimum when `recipe` is None, else as that recipe says.

    calibrated: with as many calibration prompts and steps as the recorded inputs have, which the peers are given.
    unet_first, unet_last: steps of the UNet before and after the recipe's own.
    """
    if recipe is None:
        from optimum.exporters.onnx import main_export

        main_export(job.model, output=job.folder(), task="text-to-image", do_validation=False)
        return {"call": "optimum.exporters.onnx.main_export(task='text-to-image', do_validation=False)"}
    from sdcompress.cli.main import main

    settings = read_settings(job.work) if calibrated else None
    used = recipe
    if settings is not None or unet_first or unet_last:
        used = str(write_recipe(recipe, settings, Path(job.work) / "recipes" / job.contender, unet_first, unet_last))
    sys.argv = ["sdcompress", "compress", job.source, "--recipe", used, "--out", str(job.folder()), "--force"]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{' '.join(sys.argv)} ended with {end.code}") from None
    return {"call": f"sdcompress compress MODEL --recipe {recipe}", "calibration": settings}


def write_recipe(
    recipe: str, settings: Mapping[str, Any] | None, folder: Path, unet_first: Steps = (), unet_last: Steps = ()
) -> Path:
    """A copy of the shipped recipe that calibrates as `settings` says, with other steps around the UNet's."""
    import yaml

    from sdcompress.planning.recipe import shipped_recipes

    content = yaml.safe_load(shipped_recipes()[recipe].read_text(encoding="utf-8"))
    if settings is not None:
        counts = {"prompt_count": settings["calibration_prompts"], "num_inference_steps": settings["steps"]}
        content["calibration"] = {**content.get("calibration", {}), **counts}
    components = content["components"]
    if unet_first or unet_last:
        components["unet"] = [*unet_first, *components.get("unet", components["*"]), *unet_last]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{recipe}.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return file


def import_libraries() -> None:
    """Imports ONNX Runtime, which is no part of loading a component."""
    import onnxruntime  # noqa: F401


def load(job: Job, inputs: Mapping[str, np.ndarray], **_: Any) -> Runner:
    """A session over the contender's model.onnx, all options but the threads left as they are."""
    file = job.part() / "model.onnx"
    session = open_session(file, job.threads)
    declared = {given.name: given for given in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    wanted = OUTPUTS.get(job.component) or next(name for name in TEXT_OUTPUTS if name in names)
    return Runner(
        prepare=lambda given: fit_inputs(declared, given),
        run=lambda feed: session.run([wanted], feed),
        read=lambda outputs: np.asarray(outputs[0], dtype=np.float32),
        size_bytes=onnx_bytes(job.part()),
        details={"inputs": {name: f"{one.type} {one.shape}" for name, one in declared.items()}},
    )


def open_session(file: Path, threads: int) -> Any:
    """ONNX Runtime's session over a file, on the CPU with that many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def fit_inputs(declared: Mapping[str, Any], given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs as the graph declares them: an export may want the timestep as int64, or as a row of one."""
    feed = {}
    for name, one in declared.items():
        value = np.asarray(given[name]).astype(NUMPY_TYPES[one.type])
        feed[name] = value.reshape([1] * len(one.shape)) if value.size == 1 and name == "timestep" else value
    return feed


def onnx_bytes(folder: Path) -> int:
    """Bytes of the ONNX files directly in a folder, external data included."""
    return sum(file.stat().st_size for file in folder.glob("*.onnx*"))
