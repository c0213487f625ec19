"""What ONNX artifacts cost in quality on the built-in tiny-sd: same-seed PSNR and CLIP drift against the original.

    python benchmarks/onnx_quality.py [--contenders onnx-int8 ort-quantize-static] [--count 32]

The ONNX recipes, torch's int8 recipe, optimum's plain export, and ONNX Runtime's own quantize_static on that export's
UNet, VAE decoder and text encoder (on its default operators, and on Conv, MatMul and Gemm alone), calibrated with the
prompts, steps and seeds that the recipes use themselves. `sdcompress evaluate` compares each: the same prompts, seeds
and latents, pictures paired with the original's. Keeps each report with its raw samples in
benchmarks/results/onnx_quality.json. Its seconds are not for comparing runtimes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402

from benchmarks.contenders.catalog import CONTENDERS  # noqa: E402
from benchmarks.contenders.contest import make_all  # noqa: E402
from benchmarks.contenders.inputs import record_inputs  # noqa: E402
from benchmarks.contenders.job import MADE, Job  # noqa: E402
from benchmarks.contenders.models import open_model  # noqa: E402
from benchmarks.docs_tables import onnx_quality_table  # noqa: E402
from benchmarks.full_size import commit  # noqa: E402
from sdcompress.calibration.prompts import default_prompts  # noqa: E402
from sdcompress.calibration.settings import Calibration  # noqa: E402
from sdcompress.errors import SdcompressError  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "onnx_quality.json"
MODEL = "tiny-sd"
STATIC = ("ort-quantize-static", "ort-quantize-static-layers")
TORCH_RECIPES = ("int8",)
WANTED = ("optimum", "onnx-fp32", "onnx-fp16", "onnx-int8", "onnx-int4", "onnx-mixed", *STATIC, *TORCH_RECIPES)
STATIC_PARTS = ("unet", "vae_decoder", "text_encoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="+", choices=WANTED, default=list(WANTED))
    parser.add_argument("--count", type=int, default=32, help="prompts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "onnx_quality")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    source, model, work = open_model(MODEL, arguments.work)
    calibration = Calibration().prompt_count, default_prompts(tiny_sd=True).num_inference_steps or 0
    inputs = record_inputs(source, work, arguments.threads, *calibration)
    reports = {}
    for name in arguments.contenders:
        artifact = make_artifact(name, source, model, work, arguments.threads)
        reports[name] = evaluate(name, artifact, work / "evaluation" / name, arguments.count, arguments.threads)
    result = {
        "command": "python benchmarks/onnx_quality.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "calibration": inputs,
        "reports": reports,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, separators=(",", ":"), ensure_ascii=False)
    arguments.out.write_text(text + "\n", encoding="utf-8")
    print(onnx_quality_table(result))
    print(f"written: {arguments.out}", file=sys.stderr)


def make_artifact(name: str, source: str, model: str, work: Path, threads: int) -> Path:
    """The folder of the pipeline of that name, made anew but for what it is made from."""
    if name in TORCH_RECIPES:
        command = [sys.executable, "-m", "sdcompress", "compress", source, "--recipe", name, "--out", str(work / name)]
        subprocess.run([*command, "--force"], check=True, cwd=ROOT, stdout=sys.stderr)
        return work / name
    for part in STATIC_PARTS if name in STATIC else STATIC_PARTS[:1]:
        names = (*CONTENDERS[name].needs, name)
        jobs = {one: Job(one, source, model, part, str(work), threads) for one in names}
        pythons = dict.fromkeys(("onnxruntime", "sdcompress"), sys.executable)
        limit = int(0.95 * psutil.virtual_memory().available)
        made = make_all([CONTENDERS[name]], jobs, pythons, limit, remake=[name])
        if made[name]["failed"] is not None:
            raise SdcompressError(f"{name}: {made[name]['failed']}")
    return work / name if CONTENDERS[name].family == "sdcompress" else assemble(name, work)


def assemble(name: str, work: Path) -> Path:
    """A copy of optimum's pipeline, for quantize_static with the quantized graphs in the place of its own.

    optimum's model_index.json names the safety checker that it did not export; the copy's says that there is none.
    """
    folder = work / f"{name}-pipeline"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work / "optimum", folder, ignore=shutil.ignore_patterns(MADE))
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    for part in STATIC_PARTS if name in STATIC else ():
        for file in (folder / part).glob("*.onnx*"):
            file.unlink()
        for file in (work / name / part).glob("*.onnx*"):
            shutil.copyfile(file, folder / part / file.name)
    return folder


def evaluate(name: str, artifact: Path, out: Path, count: int, threads: int) -> dict[str, Any]:
    """The report of the artifact against the original."""
    options = ["--count", str(count), "--threads", str(threads), "--device", "cpu", "--force"]
    command = [sys.executable, "-m", "sdcompress", "evaluate", MODEL, str(artifact), "--out", str(out), *options]
    subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)
    report = dict(json.loads((out / "report.json").read_text(encoding="utf-8")))
    report["label"] = CONTENDERS[name].label if name in CONTENDERS else f"sdcompress {name} (torch)"
    return report


if __name__ == "__main__":
    main()
