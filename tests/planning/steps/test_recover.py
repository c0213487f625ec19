"""The recover step: it learns, goes on where it was killed, stops at NaN, and is planned as it is."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from listeners import Events, interrupt_writing
from peak_memory import planned_and_taken_bytes
from safetensors.torch import load_file

from sdcompress.errors import ArtifactError, RecipeError, TrainingError
from sdcompress.execution.execute import execute
from sdcompress.execution.verify import verify
from sdcompress.files.artifact import partial_folder
from sdcompress.files.manifest import Manifest, read_manifest
from sdcompress.planning.plan import Plan, make_plan
from sdcompress.planning.recipe import parse_recipe
from sdcompress.planning.steps.recover import Recover
from sdcompress.report.plan_view import describe_plan
from sdcompress.sources.opening import open_source

PRUNE = "    - prune: {drop_mid_block: true, layers_per_block: 1}\n"
SHORT = "prompts: [ab, c], batch_size: 2"
WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


def recipe(steps: str, target: str = "torch") -> Any:
    return parse_recipe(f"schema_version: 1\ndescription: T\ntarget: {target}\ncomponents:\n{steps}", "r.yaml")


def recovery(folder: Path, options: str) -> Plan:
    return make_plan(recipe(f"  unet:\n{PRUNE}    - recover: {{{SHORT}, {options}}}\n"), open_source(str(folder)))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def losses(manifest: Manifest) -> list[float]:
    loss = manifest.components["unet"].recovery["loss"]
    assert loss["steps_each"] == 1
    return list(loss["means"])


def interrupt_training(step: int) -> Events:
    return Events("training", lambda event: event.done == step)


def without_seconds(folder: Path) -> dict[str, bytes]:
    """The artifact's files but those that tell how long it took: the manifest."""
    return {name: content for name, content in snapshot(folder).items() if name != "sdcompress.json"}


@pytest.mark.parametrize("options", ["dtype: float32", "dtype: bfloat16", "lora_rank: 4, learning_rate: 0.005"])
def test_the_loss_falls(nano_folder: Path, tmp_path: Path, options: str) -> None:
    """Sixty steps on a random UNet: the last ten lose less than half as much over the first ones' level."""
    given = options if "learning_rate" in options else f"{options}, learning_rate: 0.003"
    manifest = execute(recovery(nano_folder, f"steps: 60, {given}"), tmp_path / "out")
    curve = losses(manifest)
    # No theory says how far: 0.5 is far from what noise of batches does (the first ten vary by a tenth).
    assert sum(curve[-10:]) < 0.5 * sum(curve[:10]), curve
    facts = manifest.components["unet"].recovery
    assert facts["steps"] == 60 and facts["seconds"] > 0 and facts["trajectories"] == {"prompts": 2, "points": 25}
    assert verify(tmp_path / "out") == []
    assert not partial_folder(tmp_path / "out").exists() and not (tmp_path / "out" / "training").exists()


@pytest.mark.parametrize("killed_at", [1, 4])
@pytest.mark.parametrize("options", ["gradient_accumulation: 2", "lora_rank: 2"])
def test_an_interrupted_run_has_the_same_curve_and_bytes(
    nano_folder: Path, tmp_path: Path, killed_at: int, options: str
) -> None:
    """Interrupted after a step whose checkpoint is not written yet, so that this step is taken again."""
    plan = recovery(nano_folder, f"steps: 6, {options}, checkpoint_minutes: 0")
    whole = execute(plan, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        execute(plan, tmp_path / "out", listener=interrupt_training(killed_at))
    events = Events("training")
    manifest = execute(plan, tmp_path / "out", resume=True, listener=events)
    assert [event.done for event in events] == list(range(killed_at, 7))
    assert {(event.subject, event.total, event.unit) for event in events} == {("unet", 6, "steps")}
    assert losses(manifest) == losses(whole) and len(losses(whole)) == 6
    assert without_seconds(tmp_path / "out") == without_seconds(tmp_path / "whole")


def test_a_trained_component_is_not_trained_again(nano_folder: Path, tmp_path: Path) -> None:
    """Killed between training and the end of writing: the last checkpoint is all that is left to do."""
    plan = recovery(nano_folder, "steps: 2")
    with pytest.raises(KeyboardInterrupt):
        execute(plan, tmp_path / "out", listener=interrupt_writing("vae"))
    state = partial_folder(tmp_path / "out") / "state.json"
    finished = json.loads(state.read_text())
    del finished["finished"]["unet"]
    state.write_text(json.dumps(finished))
    events = Events("training")
    execute(plan, tmp_path / "out", resume=True, listener=events)
    assert events == [] and verify(tmp_path / "out") == []


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(nano_folder: Path, tmp_path: Path) -> None:
    """Steps of 1e12 put the weights where float32 overflows; a lower rate goes on from what was kept."""
    sane = recovery(nano_folder, "steps: 3, checkpoint_minutes: 0, warmup_steps: 0")
    with pytest.raises(KeyboardInterrupt):
        execute(sane, tmp_path / "out", listener=interrupt_training(3))
    checkpoint = partial_folder(tmp_path / "out") / "training" / "unet" / "checkpoint.safetensors"
    before = checkpoint.read_bytes()
    wild = recovery(nano_folder, "steps: 20, checkpoint_minutes: 9, warmup_steps: 0, learning_rate: 1.0e+12")
    expected = r"unet\.recover\.learning_rate: the \w+ is (nan|inf) at step \d+ \(the checkpoint of step 2 is kept\)"
    with pytest.raises(TrainingError, match=expected) as caught:
        execute(wild, tmp_path / "out", resume=True)
    assert caught.value.exit_code == 2 and "lower it (1e+12) and go on with --resume" in str(caught.value)
    assert checkpoint.read_bytes() == before
    manifest = execute(sane, tmp_path / "out", resume=True)
    execute(sane, tmp_path / "whole")
    assert without_seconds(tmp_path / "out") == without_seconds(tmp_path / "whole")
    assert manifest.components["unet"].recovery["learning_rates"] == {"0": 5e-4}


def test_a_fresh_run_that_failed_is_continued_with_another_rate_alone(nano_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no checkpoint yet"):
        execute(recovery(nano_folder, "steps: 20, warmup_steps: 0, learning_rate: 1.0e+12"), tmp_path / "out")
    with pytest.raises(ArtifactError, match="was begun with another recipe"):
        execute(recovery(nano_folder, "steps: 20, warmup_steps: 0, seed: 1"), tmp_path / "out", resume=True)
    execute(recovery(nano_folder, "steps: 1, warmup_steps: 0"), tmp_path / "out", resume=True)
    assert verify(tmp_path / "out") == []


def test_minutes_are_minutes_of_training(nano_folder: Path, tmp_path: Path) -> None:
    facts = execute(recovery(nano_folder, "minutes: 0.01"), tmp_path / "out").components["unet"].recovery
    # The step under way at the end is finished; one takes about 0.05 s, and 3 s on the slowest of machines.
    assert 0.6 <= facts["seconds"] < 3.6 and facts["steps"] >= 1


def test_the_average_is_what_comes_out(nano_folder: Path, tmp_path: Path) -> None:
    """With a decay of 0 the average is the last weights; with one of 0.999 it lies nearer to the first ones."""
    for decay in (0, 0.999):
        plan = recovery(nano_folder, f"steps: 8, warmup_steps: 0, learning_rate: 0.01, ema_decay: {decay}")
        execute(plan, tmp_path / str(decay))
    first = load_file(nano_folder / WEIGHTS)["conv_in.weight"]
    last, average = (load_file(tmp_path / str(decay) / WEIGHTS)["conv_in.weight"] for decay in (0, 0.999))
    assert 0 < (average - first).norm() < (last - first).norm()


PRUNED = "    - prune: {drop_mid_block: true}\n"
RECOVERED = "    - recover: {steps: 1}\n"


@pytest.mark.parametrize(
    ("component", "steps", "field"),
    [
        ("unet", RECOVERED, "components.unet.0.recover"),  # nothing was pruned
        ("unet", f"{RECOVERED}{PRUNED}", "components.unet.0.recover"),
        ("unet", f"{PRUNED}    - recover: {{}}\n", "components.unet.1.recover"),
        ("unet", f"{PRUNED}    - recover: {{minutes: 1, steps: 1}}\n", "components.unet.1.recover"),
        ("unet", f"{PRUNED}    - quantize: {{format: int8}}\n{RECOVERED}", "components.unet.2.recover"),
        ("unet", f"{PRUNED}    - recover: {{steps: 1, prompt_count: 9999}}\n", "components.unet.recover.prompt_count"),
        ("vae", f"{PRUNED}{RECOVERED}", "components.vae.1.recover"),
    ],
)
def test_mistakes_are_named(component: str, steps: str, field: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_plan(recipe(f"  {component}:\n{steps}"), open_source("tiny-sd"))
    assert field in [problem.field for problem in caught.value.problems]


def test_only_pipelines_that_can_be_drawn_with_are_recovered() -> None:
    source = open_source("tiny-sd")
    other = dataclasses.replace(source, model_index={**source.model_index, "_class_name": "KandinskyPipeline"})
    with pytest.raises(RecipeError, match="tiny-sd is a KandinskyPipeline; leave this step out"):
        make_plan(recipe(f"  unet:\n{PRUNED}{RECOVERED}"), other)


def test_a_catalog_model_is_planned_with_its_memory() -> None:
    """Original, weights, gradients, two moments and average in float32; training them costs more than updates."""
    text = f"  unet:\n{PRUNED}    - recover: {{minutes: 10, batch_size: 1%s}}\n    - cast: {{dtype: float16}}\n"
    full, small = (make_plan(recipe(text % options), open_source("sd15")) for options in ("", ", lora_rank: 16"))
    weights = 4 * full.source.components["unet"].parameters + 20 * full.after("unet").parameters
    # Five self-attentions at 64x64 keep scores of 8 heads in three copies; all other activations are less than those.
    scores = 5 * 3 * 8 * 4096**2 * 4
    assert weights + scores < full.peak_bytes < weights + 2 * scores
    assert small.peak_bytes < full.peak_bytes - 8 * full.after("unet").parameters
    notes = describe_plan(full)["components"]["unet"]["notes"]
    assert "trained for 10 minutes" in notes[0] and "64 pictures" in notes[1]


def test_for_onnx_too() -> None:
    steps = f"{PRUNED}    - recover: {{minutes: 1}}\n    - cast: {{dtype: float32}}\n    - quantize: {{format: int8}}\n"
    plan = make_plan(recipe(f"  unet:\n{steps}", "onnx"), open_source("sd15"))
    assert [step.step.kind for step in plan.steps_of("unet")] == ["prune", "recover", "cast", "quantize", "export"]


@pytest.mark.full
def test_the_exported_unet_is_the_trained_one(nano_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install 'sdcompress[onnx]')")
    steps = f"  unet:\n{PRUNE}    - recover: {{{SHORT}, steps: 2}}\n    - quantize: {{format: int8}}\n"
    manifest = execute(make_plan(recipe(steps, "onnx"), open_source(str(nano_folder))), tmp_path / "out")
    assert manifest.components["unet"].recovery["steps"] == 2
    assert verify(tmp_path / "out") == []


@pytest.mark.full
def test_a_killed_process_has_the_same_curve(nano_folder: Path, tmp_path: Path) -> None:
    """SIGKILL from outside on the real command line, while it trains."""
    file = tmp_path / "r.yaml"
    options = f"{SHORT}, steps: 60, checkpoint_minutes: 0"
    file.write_text(f"schema_version: 1\ndescription: T\ncomponents:\n  unet:\n{PRUNE}    - recover: {{{options}}}\n")
    base = [sys.executable, "-m", "sdcompress", "compress", str(nano_folder), "--recipe", str(file), "--out"]
    out = tmp_path / "out"
    process = subprocess.Popen([*base, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = partial_folder(out) / "training" / "unet" / "checkpoint.safetensors"
    for _ in range(6000):
        if process.poll() is not None or checkpoint.exists():
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.exists() and not out.exists()
    subprocess.run([*base, str(out), "--resume"], check=True, capture_output=True)
    subprocess.run([*base, str(tmp_path / "whole")], check=True, capture_output=True)
    curves = [losses(read_manifest(folder)) for folder in (out, tmp_path / "whole")]
    assert curves[0] == curves[1]
    assert without_seconds(out) == without_seconds(tmp_path / "whole")


@pytest.mark.full
def test_two_processes_train_together(nano_folder: Path, tmp_path: Path) -> None:
    """Batches count twice, and the loss falls as it does in one process."""
    file = tmp_path / "r.yaml"
    file.write_text(
        f"schema_version: 1\ndescription: T\ncomponents:\n  unet:\n{PRUNE}"
        f"    - recover: {{{SHORT}, steps: 30, learning_rate: 0.003}}\n"
    )
    # torchrun, with which accelerate starts several processes on GPUs; without a configuration it starts one on a CPU.
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "sdcompress"]
    arguments = ["compress", str(nano_folder), "--recipe", str(file), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    subprocess.run([*command, *arguments], check=True, capture_output=True, timeout=300, env=environment)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.components["unet"].recovery["samples_per_step"] == 4
    curve = losses(manifest)
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])
    assert verify(tmp_path / "out") == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads VmHWM from Linux's /proc")
def test_peak_memory_is_within_the_plan(tmp_path: Path) -> None:
    """VmHWM of a fresh process against the plan, which must neither promise too little nor cry wolf."""
    file = tmp_path / "r.yaml"
    prompt = "a fluent 3d emoji of star, blue background"
    file.write_text(
        f"schema_version: 1\ndescription: T\ncomponents:\n  unet:\n{PRUNE}"
        f"    - recover: {{steps: 2, batch_size: 16, prompts: ['{prompt}']}}\n"
    )
    predicted, actual = planned_and_taken_bytes(str(file), tmp_path / "out")
    assert 0.6 * predicted < actual <= predicted


def test_trajectories_begin_with_other_noise_than_evaluations() -> None:
    """torch's generator for CPUs heeds the lowest 32 bits of a seed; evaluations count from 0."""
    import torch

    from sdcompress.calibration.settings import FIRST_SEED

    first = Recover(steps=1)._calibration(open_source("tiny-sd")).seed + FIRST_SEED
    evaluated = {float(torch.randn(1, generator=torch.Generator().manual_seed(seed))) for seed in range(64)}
    drawn = {float(torch.randn(1, generator=torch.Generator().manual_seed(first + place))) for place in range(64)}
    assert not drawn & evaluated
