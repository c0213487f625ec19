"""One contender of the peers, from the float16 pipeline to its pictures. Runs in the peers' environment.

    python -m benchmarks.quality.peer_worker JOB.json

Writes `result.json` beside the job: bytes, what was left alone, the latents' hashes; or why it failed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

# SDNQ compiles its dequantization for every shape; nothing is timed here, and eager gives the same numbers.
os.environ.setdefault("SDNQ_USE_TORCH_COMPILE", "0")

from benchmarks.quality.contender import COUNTED, ORIGINAL, Contender
from benchmarks.quality.drawing import draw
from benchmarks.quality.peer_libraries import QUANTIZE, compute_in_float32, save
from benchmarks.quality.weight_bytes import left_alone, spare_bytes, weight_bytes


def main() -> None:
    file = Path(sys.argv[1])
    job = json.loads(file.read_text(encoding="utf-8"))
    start = time.perf_counter()
    try:
        result = {"failed": None, **measure(Contender(**job["contender"]), job, file.parent)}
    except Exception as error:  # what a peer cannot do is a result
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        result = {"failed": f"{type(error).__name__}: {first}"}
    if "sdcompress" in sys.modules:
        raise RuntimeError("sdcompress was imported: the peers are to run without it")
    result["seconds"] = time.perf_counter() - start
    write_result(file.parent, job, result)


def write_result(folder: Path, job: dict[str, Any], result: dict[str, Any]) -> None:
    """Keeps the result and what it is a result of; a file of that name is complete."""
    partial = folder / "result.json.partial"
    partial.write_text(json.dumps({"identity": job["identity"], **result}, indent=1), encoding="utf-8")
    partial.replace(folder / "result.json")


def measure(contender: Contender, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Bytes, layers left alone and hashes of latents of the contender; its pictures go into `folder`."""
    import torch
    from diffusers import DiffusionPipeline

    torch.set_num_threads(1)
    pipeline = DiffusionPipeline.from_pretrained(job["model"], torch_dtype=torch.float16, local_files_only=True)
    facts: dict[str, Any] = {"component_bytes": {}, "packed_bytes": {}, "saved_bytes": {}, "left_alone": {}}
    for name in COUNTED:
        component = getattr(pipeline, name)
        originals = {parameter: tuple(value.shape) for parameter, value in component.named_parameters()}
        options = contender.options if name in contender.components else job["rest_options"]
        if options is not None and contender.owner != ORIGINAL:
            component = QUANTIZE[contender.library](component, options)
            facts["left_alone"][name] = left_alone(component, originals)
            facts["saved_bytes"][name] = _saved_bytes(component, contender.library, folder / "saved")
            setattr(pipeline, name, component)
        counted = weight_bytes(component, originals)
        facts["component_bytes"][name] = counted
        facts["packed_bytes"][name] = counted - spare_bytes(component)
        compute_in_float32(component)
    with torch.compiler.set_stance("force_eager"):
        facts["latents_sha256"] = draw(pipeline, job["drawings"], job["options"], folder / "pictures")
    return facts


def _saved_bytes(component: Any, library: str, folder: Path) -> int | str:
    """Bytes of the files the peer saves, or the first line of what went wrong when it saved."""
    try:
        return save(component, library, folder)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
