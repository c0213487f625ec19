"""One contender of ours, or the original: compressed by the command line, opened in float32, drawn.

    python -m benchmarks.quality.own_worker JOB.json

Writes `result.json` beside the job as the peers' worker does.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.quality.contender import COUNTED, ORIGINAL, Contender
from benchmarks.quality.drawing import draw
from benchmarks.quality.peer_worker import write_result


def main() -> None:
    file = Path(sys.argv[1])
    job = json.loads(file.read_text(encoding="utf-8"))
    start = time.perf_counter()
    try:
        result = {"failed": None, **measure(Contender(**job["contender"]), job, file.parent)}
    except Exception as error:  # one contender that fails is not to stop the others
        traceback.print_exc()
        result = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    result["seconds"] = time.perf_counter() - start
    write_result(file.parent, job, result)


def measure(contender: Contender, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Bytes, layers left alone and hashes of latents of the contender; its pictures go into `folder`."""
    from sdcompress import open_pipeline, open_source

    if contender.owner == ORIGINAL:
        dtype = contender.options["dtype"]
        facts: dict[str, Any] = {"component_bytes": _component_bytes(open_source(job["model"])), "left_alone": {}}
        pipeline = open_pipeline(job["model"], device="cpu", dtype=dtype, threads=1)
    else:
        artifact = folder / "artifact"
        facts = _compress(job["recipe"], job["model"], artifact)
        pipeline = open_pipeline(artifact, device="cpu", dtype="float32", threads=1)
    facts["latents_sha256"] = draw(pipeline, job["drawings"], job["options"], folder / "pictures")
    shutil.rmtree(folder / "artifact", ignore_errors=True)
    return facts


def _compress(recipe: str, model: str, artifact: Path) -> dict[str, Any]:
    """Bytes and layers left alone of the artifact that the recipe gives."""
    from sdcompress import open_source
    from sdcompress.planning.plan import make_plan
    from sdcompress.planning.recipe import parse_recipe

    file = artifact.parent / "recipe.yaml"
    file.write_text(recipe, encoding="utf-8")
    command = [sys.executable, "-m", "sdcompress", "compress", model, "--recipe", str(file), "--out", str(artifact)]
    answer = subprocess.run([*command, "--force"], stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    print(answer.stderr, file=sys.stderr)
    if answer.returncode:
        raise RuntimeError(f"sdcompress compress: {(answer.stderr.strip().splitlines() or ['failed'])[-1]}")
    spared: dict[str, dict[str, int]] = {}
    for step in make_plan(parse_recipe(recipe, str(file)), open_source(model)).steps:
        left = {layer.layer: layer.parameters for layer in step.planned.layers if layer.format is None}
        if step.planned.layers and step.component in COUNTED:
            spared[step.component] = {
                layer.layer: layer.parameters
                for layer in step.planned.layers
                if layer.layer in left and layer.kind not in ("norm", "other")
            }
    return {"component_bytes": _component_bytes(open_source(str(artifact))), "left_alone": spared}


def _component_bytes(source: Any) -> dict[str, int]:
    return {name: source.components[name].weights_bytes for name in COUNTED}


if __name__ == "__main__":
    main()
