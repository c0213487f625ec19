"""The command line as a user meets it: output, exit codes, messages, and nothing left behind."""

import json
import os
import subprocess
import sys
import time

import pytest
from command_line import refused, sdcompress
from PIL import Image

from sdcompress import generate
from sdcompress.files.artifact import file_problems
from sdcompress.files.manifest import read_manifest
from sdcompress.planning.recipe import shipped_recipes


@pytest.fixture(scope="module")
def artifact(nano_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("artifacts") / "int8"
    result = sdcompress("compress", nano_folder, "--recipe", "int8", "--out", out)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{out}\n"
    return out


def test_light_commands_import_no_torch():
    script = (
        "import sys\nfrom sdcompress.cli.main import app\n"
        "for words in (['recipes', 'list'], ['inspect', 'sdxl'], ['plan', 'sdxl', '--recipe', 'mixed']):\n"
        "    app(words, standalone_mode=False)\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'bitsandbytes', 'torchmetrics'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_plan_shows_sizes_reasons_and_memory():
    result = sdcompress("plan", "sd15", "--recipe", "nf4")
    assert result.returncode == 0
    for words in (
        "859,520,964",
        "left alone: sensitive layer conv_in",
        "Predicted peak memory",
        "bitsandbytes on a GPU",
    ):
        assert words in result.stdout
    as_json = json.loads(sdcompress("plan", "sd15", "--recipe", "nf4", "--json").stdout)
    assert as_json["components"]["unet"]["original"]["parameters"] == 859_520_964
    assert as_json["compressed"]["weights_bytes"] < as_json["original"]["weights_bytes"]


def test_recipes_list_show_copy(tmp_path):
    listed = sdcompress("recipes", "list").stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(shipped_recipes())
    assert sdcompress("recipes", "show", "int8").stdout == shipped_recipes()["int8"].read_text()
    assert sdcompress("recipes", "copy", "int8", tmp_path / "mine.yaml").returncode == 0
    assert sdcompress("plan", "tiny-sd", "--recipe", tmp_path / "mine.yaml").returncode == 0
    refused("recipes", "copy", "int8", tmp_path / "mine.yaml", says="exists already")
    refused("recipes", "show", "int9", says="no such recipe or file; did you mean int8?")


def test_verify_finds_what_was_changed(artifact):
    assert sdcompress("verify", artifact).returncode == 0
    file = artifact / "unet" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        refused("verify", artifact, says="its SHA-256 is not the manifest's")
        file.write_bytes(whole[:-4])
        refused("verify", artifact, says="bytes, the manifest says")
    finally:
        file.write_bytes(whole)
    refused("verify", artifact.parent, says="is no artifact of sdcompress")


def test_generate(artifact, tmp_path):
    file = tmp_path / "a.png"
    assert sdcompress("generate", artifact, "ab", "-o", file, "--steps", 1, "--seed", 3).returncode == 0
    drawn, again = Image.open(file), generate(str(artifact), "ab", steps=1, seed=3)
    assert drawn.size == (16, 16) and drawn.tobytes() == again.tobytes()
    refused("generate", artifact, "ab", "-o", tmp_path / "no" / "a.png", says="must be a .png in a folder that exists")
    refused("generate", "sd15", "ab", "-o", file, says="has no weights here")
    refused("generate", artifact, "ab", "-o", file, "--dtype", "int4", says="--dtype int4: use one of")
    refused("generate", artifact, "ab", "-o", file, "--device", "tpu", says="--device tpu:")


BAD_RECIPES = {
    "step": ("unet: [{quant: {format: int8}}]", "components.unet.0: no step 'quant'"),
    "format": ("unet: [{quantize: {format: int7}}]", "no format 'int7'; did you mean int8?"),
    "key": ("unet: [{quantize: {format: int8, bits: 8}}]", "components.unet.0.quantize.bits: no such key"),
    "component": ("unett: [{quantize: {format: int8}}]", "components.unett: the pipeline has no such component"),
    "pattern": ("unet: [{quantize: {format: int8, include: [conv_im]}}]", "'conv_im' matches no layer of unet"),
    "group": (
        "unet: [{cast: {dtype: float32}}, {quantize: {format: int8, group_size: 48}}]}\ntarget: onnx\n#",
        "group_size: 48 does not divide",
    ),
}


@pytest.mark.parametrize("name", BAD_RECIPES)
@pytest.mark.parametrize("command", ["plan", "compress", "run"])
def test_bad_recipes(name, command, nano_folder, tmp_path):
    body, says = BAD_RECIPES[name]
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"schema_version: 1\ndescription: T\ncomponents: {{{body}}}\n")
    out = () if command == "plan" else ("--out", tmp_path / "out")
    refused(command, nano_folder, "--recipe", recipe, *out, says=says)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.yaml"]


SPOILED = {
    "missing": (lambda weights: weights.unlink(), "unet: has a config.json but no weights"),
    "truncated": (lambda weights: weights.write_bytes(weights.read_bytes()[:-100]), "which is truncated"),
    "corrupt": (lambda weights: weights.write_bytes(b"\xff" * 5000), "its header is longer than the file"),
    "pickle": (lambda weights: weights.rename(weights.with_suffix(".bin")), "has only pickled weights"),
    "no pipeline": (lambda weights: (weights.parents[1] / "model_index.json").unlink(), "is no pipeline"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_bad_models(how, nano_copy, tmp_path):
    spoil, says = SPOILED[how]
    spoil(nano_copy / "unet" / "diffusion_pytorch_model.safetensors")
    refused("compress", nano_copy, "--recipe", "int8", "--out", tmp_path / "out", says=says)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nano"]


def test_unknown_model_and_unreachable_hub(tmp_path):
    refused("inspect", "sd16", says="no such folder or file, and no name sdcompress knows")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    started = time.monotonic()
    for model, named in (("some/model", "some/model"), ("sd15", "stable-diffusion-v1-5")):
        result = sdcompress("compress", model, "-r", "int8", "-o", tmp_path / "out", env=nowhere)
        assert result.returncode == 2 and named in result.stderr and "Traceback" not in result.stderr
    assert time.monotonic() - started < 60
    assert not (tmp_path / "out").exists()


def test_existing_output(artifact, nano_folder):
    refused(
        "compress", nano_folder, "-r", "int8", "-o", artifact, says="exists already; choose another --out, or --force"
    )


def test_usage_errors_exit_with_2(tmp_path):
    refused("compress", "tiny-sd", "--out", tmp_path / "out", says="Missing option '--recipe'")
    refused("evaluate", "tiny-sd", "tiny-sd", "--out", tmp_path / "out", "--height", 30, says="multiple of 8")


@pytest.mark.skipif(not hasattr(os, "mkfifo") or os.name == "nt", reason="signals as on POSIX")
def test_interrupt_keeps_what_is_finished(tmp_path):
    import signal

    out = tmp_path / "out"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "schema_version: 1\ndescription: k-means over the VAE leaves seconds between the first component and the end\n"
        'components: {vae: [{quantize: {format: codebook6}}], "*": [{cast: {dtype: float16}}]}\n'
    )
    command = [sys.executable, "-m", "sdcompress", "compress", "tiny-sd", "--recipe", str(recipe), "--out", str(out)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which shells have background jobs ignore
    )  # fmt: skip
    state = tmp_path / "out.partial" / "state.json"
    for _ in range(6000):
        if process.poll() is not None or (state.exists() and '"safety_checker"' in state.read_text()):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said and "--resume" in said
    assert state.exists() and not out.exists()


@pytest.mark.smoke
def test_run_does_the_whole_job(tmp_path):
    out = tmp_path / "out"
    options = ("--count", 2, "--steps", 2)
    result = sdcompress("run", "tiny-sd", "--recipe", "int8", "--out", out, *options)
    assert result.returncode == 0, result.stderr
    report = json.loads((out / "report.json").read_text())
    for key in ("parameters", "size_bytes", "weights_bytes", "peak_memory_bytes", "latency_s", "clip_score"):
        assert report["original"][key] > 0 and report["compressed"][key] > 0 and key in report["change"]
    assert report["compressed"]["size_bytes"] <= 0.55 * report["original"]["size_bytes"]
    assert report["compressed"]["parameters"] == report["original"]["parameters"]
    assert Image.open(out / "images.png").size[0] > 100 and (out / "report.md").exists()
    assert "<script" in (out / "report.html").read_text(encoding="utf-8")
    assert "## What was measured" in (out / "artifact" / "README.md").read_text(encoding="utf-8")
    assert file_problems(out / "artifact", read_manifest(out / "artifact")) == []
    assert "CLIP" in result.stdout and str(out / "images.png") in result.stdout
    refused("run", "tiny-sd", "--recipe", "int8", "--out", out, *options, says="holds a report already")
    for key in ("noise_floor", "verdicts", "component_metrics"):
        assert report[key], key
    refused(
        "run", "tiny-sd", "--recipe", "int8", "--out", out, "--gate", "psnr>=1", says="no figure 'psnr'; did you mean"
    )
    gates = ("--gate", "size_ratio<=0.6", "--gate", "size_ratio<=0.1")
    again = sdcompress("run", "tiny-sd", "--recipe", "int8", "--out", out, *options, "--resume", *gates)
    assert again.returncode == 1, again.stderr
    assert "error: gate size_ratio<=0.1: measured 0.5" in again.stderr and "size_ratio<=0.6" not in again.stderr
    assert 'failures="1"' in (out / "junit.xml").read_text()
    assert sdcompress("run", "tiny-sd", "--recipe", "int8", "--out", out, *options, "--resume").returncode == 0
