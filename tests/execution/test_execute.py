"""Artifacts: predicted and actual are the same, runs are atomic and resumable, and nothing is left after an error."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from listeners import interrupt_writing
from peak_memory import planned_and_taken_bytes
from safetensors.torch import load_file, save_file
from short_recipes import shortened

from sdcompress.backends.torch.loading import open_pipeline
from sdcompress.errors import ArtifactError, SourceError, UserError
from sdcompress.execution.execute import execute
from sdcompress.execution.verify import verify
from sdcompress.execution.write_component import weights_file
from sdcompress.files.artifact import partial_folder
from sdcompress.files.manifest import read_manifest
from sdcompress.files.safetensors_file import StreamWriter, read_header
from sdcompress.files.torch_tensors import read_tensor
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import load_recipe, parse_recipe, shipped_recipes
from sdcompress.sources.opening import open_source

SMALL_BLOCKS = "schema_version: 1\ndescription: T\ncomponents:\n"
EXTRA_RECIPES = {
    "llm-int8": "  unet:\n    - quantize: {format: llm-int8}\n  text_encoder:\n    - quantize: {format: llm-int8}\n",
    "llm-int8-conv": "  unet:\n    - quantize: {format: llm-int8, convolutions: true}\n",
    "fp4": "  unet:\n    - quantize: {format: fp4, keep_sensitive: false}\n",
    "groups": "  unet:\n    - quantize: {format: int8, group_size: 16, exclude: [conv_in]}\n",
    "bfloat16": '  "*":\n    - cast: {dtype: bfloat16}\n',
    "pruned": "  unet:\n    - prune: {drop_mid_block: true, layers_per_block: 1}\n",
    "narrowed": "  unet:\n    - prune: {remove: [mid_block.resnets.1], heads: 50%, resnet_channels: 50%}\n"
    "  text_encoder:\n    - prune: {text_layers: 1, feed_forward: 50%}\n",
    "narrowed-nf4": "  unet:\n    - prune: {heads: 50%}\n    - quantize: {format: nf4}\n",
    "sparse": '  unet:\n    - sparsify: {pattern: "2:4"}\n    - quantize: {format: int4}\n',
    "int2": "  unet:\n    - quantize: {format: int2, group_size: 16, keep_sensitive: false}\n",
    "uint3": "  unet:\n    - quantize: {format: uint3, group_size: 24, scale_bits: 8, rounding: hqq}\n",
    "uint5": "  text_encoder:\n    - quantize: {format: uint5, group_size: 128, rounding: search}\n",
    "codebook3": "  vae:\n    - quantize: {format: codebook3, group_size: 8}\n",
    "rotated": "  unet:\n    - quantize: {format: int4, hadamard: true,"
    " rank: 2, scale_bits: 8, exclude: [conv_in, conv_out]}\n",
    "gptq": "  unet:\n    - quantize: {format: uint4, rounding: gptq, bias_correction: true}\n"
    "  text_encoder:\n    - quantize: {format: normal-float4, rounding: weighted-search}\n"
    "calibration: {prompts: [ab], num_inference_steps: 2}\n",
    "smoothed": "  unet:\n    - smooth: {format: uint4, group_size: 16}\n"
    "    - quantize: {format: uint4, group_size: 16}\n"
    "calibration: {prompts: [ab], num_inference_steps: 1}\n",
    "rescheduled": "  scheduler:\n    - replace_component: {class_name: DPMSolverMultistepScheduler}\n",
    "untouched": "  vae:\n    - cast: {dtype: float16}\n",
}


def recipe_of(name):
    if name in EXTRA_RECIPES:
        return parse_recipe(SMALL_BLOCKS + EXTRA_RECIPES[name], name)
    return shortened(load_recipe(name))


def snapshot(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


# Those for ONNX: tests/backends/onnx/test_export.py.
TORCH_RECIPES = [name for name in shipped_recipes() if load_recipe(name).target == "torch"]


@pytest.mark.parametrize("name", [*TORCH_RECIPES, *EXTRA_RECIPES])
def test_predicted_is_actual_and_it_opens(name, nano_folder, tmp_path):
    plan = make_plan(recipe_of(name), open_source(str(nano_folder)))
    manifest = execute(plan, tmp_path / "out")
    after = open_source(str(tmp_path / "out"))
    for component, spec in plan.components_after.items():
        planned = {one.layer: one.status for step in plan.steps_of(component) for one in step.planned.layers}
        entries = manifest.components[component].layers
        # The manifest has no status of its own; a layer that is sparse and then kept is sparse.
        told = {layer: entry.status for layer, entry in entries.items()}
        assert {layer: planned[layer] for layer in told} == told or name == "sparse"
        assert dict(after.components[component].tensors) == dict(spec.tensors), component
        file = tmp_path / "out" / component / weights_file(spec)
        assert sum(where.size_bytes for where in read_header(file).values()) == spec.weights_bytes
        written = json.loads((tmp_path / "out" / component / "config.json").read_text())
        assert written == json.loads(json.dumps(dict(spec.config)))
    assert verify(tmp_path / "out") == []
    pipeline = open_pipeline(tmp_path / "out", device="cpu")
    image = pipeline("ab", num_inference_steps=1, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert image.shape == (1, 16, 16, 3)


def test_same_bytes_twice(nano_folder, tmp_path):
    plan = make_plan(load_recipe("mixed"), open_source(str(nano_folder)))
    execute(plan, tmp_path / "a")
    execute(plan, tmp_path / "b")
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_stored_codes_are_the_rounded_weights(nano_folder, tmp_path):
    execute(make_plan(load_recipe("int8"), open_source(str(nano_folder))), tmp_path / "out")
    before = load_file(nano_folder / "unet" / "diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    for name in ("conv_in", "mid_block.attentions.0.proj_in", "up_blocks.1.resnets.0.conv1"):
        weight = before[f"{name}.weight"].half().float().flatten(1)
        scale = after[f"{name}.scale"].float()
        assert torch.equal(after[f"{name}.codes"].flatten(1).float(), (weight / scale.unsqueeze(1)).round())
        assert torch.equal(after[f"{name}.bias"], before[f"{name}.bias"].half())


def test_manifest_lists_every_layer(nano_folder, tmp_path):
    manifest = execute(make_plan(load_recipe("mixed"), open_source(str(nano_folder))), tmp_path / "out")
    assert read_manifest(tmp_path / "out") == manifest
    layers = manifest.components["unet"].layers
    assert layers["conv_in"].format == "int8" and layers["conv_in"].weight_sqnr_db > 35
    assert layers["mid_block.resnets.0.conv1"].format == "nf4"
    assert manifest.recipe["components"]["unet?"][1]["quantize"]["keep_sensitive"] is None


def test_output_in_the_way(nano_folder, tmp_path):
    plan = make_plan(load_recipe("fp16"), open_source(str(nano_folder)))
    out = tmp_path / "out"
    execute(plan, out)
    with pytest.raises(ArtifactError, match="exists already"):
        execute(plan, out)
    execute(plan, out, force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ArtifactError, match="is no artifact of sdcompress"):
        execute(plan, tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_full_disk_before_and_during(nano_folder, tmp_path, monkeypatch):
    plan = make_plan(load_recipe("int8"), open_source(str(nano_folder)))
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
        with pytest.raises(ArtifactError, match="the disk is full: the artifact needs"):
            execute(plan, tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []
    written = []

    def write(self, name, data, original=StreamWriter.write):
        written.append(name)
        if len(written) == 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, name, data)

    monkeypatch.setattr(StreamWriter, "write", write)
    with pytest.raises(ArtifactError, match="the disk is full; free some space"):
        execute(plan, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_named(value, nano_copy, tmp_path):
    file = nano_copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"][0, 0, 0, 0] = value
    save_file(tensors, file)
    text = SMALL_BLOCKS + "  unet:\n    - quantize: {format: int8}\n"
    with pytest.raises(UserError, match=r"unet.conv_in.weight: 1 of 1152 values are NaN or infinite"):
        execute(make_plan(parse_recipe(text, "r"), open_source(str(nano_copy))), tmp_path / "out")
    assert not partial_folder(tmp_path / "out").exists()


def test_values_too_large_for_float16_are_named(nano_copy, tmp_path):
    file = nano_copy / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["quant_conv.bias"][0] = 1e6
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"vae.quant_conv.bias: holds 1e\+06, too large for float16"):
        execute(make_plan(load_recipe("fp16"), open_source(str(nano_copy))), tmp_path / "out")


def test_catalog_entry_has_no_weights(tmp_path):
    with pytest.raises(SourceError, match="is a catalog entry without weights"):
        execute(make_plan(load_recipe("int8"), open_source("sd15")), tmp_path / "out")


def test_interrupted_run_resumes(nano_folder, tmp_path):
    plan = make_plan(load_recipe("int8"), open_source(str(nano_folder)))
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        execute(plan, out, listener=interrupt_writing("unet"))
    finished = json.loads((partial_folder(out) / "state.json").read_text())["finished"]
    assert "text_encoder" in finished and "unet" not in finished and not out.exists()
    with pytest.raises(ArtifactError, match="an interrupted run left this"):
        execute(plan, out)
    with pytest.raises(ArtifactError, match="was begun with another recipe"):
        execute(make_plan(load_recipe("fp16"), open_source(str(nano_folder))), out, resume=True)
    first = (partial_folder(out) / "text_encoder" / "model.safetensors").stat().st_mtime_ns
    execute(plan, out, resume=True)
    assert (out / "text_encoder" / "model.safetensors").stat().st_mtime_ns == first
    assert not partial_folder(out).exists() and verify(out) == []
    execute(plan, tmp_path / "whole")
    assert snapshot(out) == snapshot(tmp_path / "whole")


@pytest.mark.full  # seven seconds; an interrupt from outside (tests/cli) and one from inside show most of it
def test_killed_run_leaves_a_partial_that_resumes(tmp_path):
    """SIGKILL at a moment chosen by progress, from outside, on the real command line."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sdcompress", "compress", "tiny-sd", "--recipe", "int4", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = partial_folder(out) / "state.json"
    for _ in range(1200):
        if process.poll() is not None or (state.exists() and json.loads(state.read_text())["finished"]):
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert partial_folder(out).exists() and not out.exists()
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    assert verify(out, load=False) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads VmHWM from Linux's /proc")
@pytest.mark.parametrize("recipe", ["int8", "nf4-conv"])
def test_peak_memory_is_within_the_plan(recipe, tmp_path):
    """VmHWM of a fresh process against the plan, which must neither promise too little nor cry wolf."""
    predicted, actual = planned_and_taken_bytes(recipe, tmp_path / "out")
    assert 0.6 * predicted < actual <= predicted


def test_old_vae_attention_names_are_written_as_new_ones(nano_copy, tmp_path):
    file = nano_copy / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    renamed = {}
    for name, tensor in tensors.items():
        for new, was in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{was}.")
        renamed[name] = tensor
    assert set(renamed) != set(tensors)
    save_file(renamed, file)
    execute(make_plan(load_recipe("int8"), open_source(str(nano_copy))), tmp_path / "out")
    assert verify(tmp_path / "out") == []


def test_read_tensor_of_every_dtype(tmp_path):
    tensors = {
        str(dtype): torch.arange(6).reshape(2, 3).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64)
    } | {"empty": torch.empty(0, 3), "scalar": torch.tensor(2.5)}
    save_file(tensors, tmp_path / "t.safetensors")
    for name, where in read_header(tmp_path / "t.safetensors").items():
        assert torch.equal(read_tensor(where), tensors[name]), name
