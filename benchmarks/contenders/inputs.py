"""What each component is given while a pipeline draws: recorded once, for calibrating, timing and comparing.

`python -m benchmarks.contenders.inputs WORK THREADS JSON` records. The calibration inputs come from the prompts and
seeds that sdcompress's own recipes calibrate with, the test inputs (first, middle and last step) from a prompt that
evaluations draw; both guidance halves are in each. Names are the ONNX ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS = "settings.json"


def record_inputs(source: str, work: Path, threads: int, prompts: int, steps: int) -> dict[str, Any]:
    """Records into `work`/inputs unless the same was recorded already; the settings, prompts and shapes."""
    settings = {"source": source, "calibration_prompts": prompts, "steps": steps}
    kept = work / "inputs" / SETTINGS
    if not kept.is_file() or json.loads(kept.read_text(encoding="utf-8"))["settings"] != settings:
        print("recording inputs", file=sys.stderr, flush=True)
        root = str(Path(__file__).resolve().parent.parent.parent)
        environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "benchmarks.contenders.inputs", str(work), str(threads), json.dumps(settings)]
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    return dict(json.loads(kept.read_text(encoding="utf-8")))


def read_settings(work: str) -> dict[str, Any]:
    """How the inputs in a model's folder were recorded."""
    kept = Path(work) / "inputs" / SETTINGS
    return dict(json.loads(kept.read_text(encoding="utf-8"))["settings"])


def main(work: str, threads: str, settings_json: str) -> None:
    """The child's side: draws with torch in float32 and writes what the components were given."""
    import torch
    from diffusers import DiffusionPipeline

    from sdcompress.calibration.prompts import default_prompts, is_tiny_sd
    from sdcompress.calibration.settings import FIRST_SEED, Calibration, choose_prompts
    from sdcompress.sources.opening import open_source

    torch.set_num_threads(int(threads))
    settings = json.loads(settings_json)
    count = settings["calibration_prompts"]
    source = open_source(settings["source"])
    folder = Path(work) / "inputs"
    prompt_set = default_prompts(is_tiny_sd(source))
    calibration = choose_prompts(Calibration(prompt_count=count), source).prompts
    seeds = [*(FIRST_SEED + place for place in range(count)), 0]
    prompts = [*calibration, prompt_set.take(prompt_set.default_count)[0]]
    options: dict[str, Any] = {"num_inference_steps": settings["steps"], "output_type": "np"}
    if prompt_set.guidance_scale is not None:
        options["guidance_scale"] = prompt_set.guidance_scale
    pipeline = DiffusionPipeline.from_pretrained(
        str(source.path), torch_dtype=torch.float32, local_files_only=True, **without_checker(str(source.path))
    )
    pipeline.set_progress_bar_config(disable=True)
    seen = watch(pipeline)
    shapes: dict[str, Any] = {}
    number: dict[str, int] = {}
    for place, prompt in enumerate(prompts):
        for calls in seen.values():
            calls.clear()
        with torch.inference_mode():
            pipeline(prompt, generator=torch.Generator("cpu").manual_seed(seeds[place]), **options)
        test = place == count
        for component, calls in seen.items():
            records = pair_texts(calls) if component.startswith("text_encoder") else calls
            if test:
                records = [records[place] for place in sorted({0, len(records) // 2, len(records) - 1})]
            (folder / component).mkdir(parents=True, exist_ok=True)
            for index, record in enumerate(records):
                nth = index if test else number.setdefault(component, 0)
                np.savez(folder / component / f"{'test' if test else 'calibration'}-{nth:03d}.npz", **record)
                if not test:
                    number[component] += 1
                shapes[component] = {name: list(value.shape) for name, value in record.items()}
    facts = {"settings": settings, "prompts": list(prompts), "shapes": shapes, "calibration_inputs": number}
    (folder / SETTINGS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def without_checker(model: str) -> dict[str, Any]:
    """What `from_pretrained` must be told to leave out a safety checker, which no contender runs."""
    index = json.loads((Path(model) / "model_index.json").read_text(encoding="utf-8"))
    return {"safety_checker": None, "requires_safety_checker": False} if "safety_checker" in index else {}


def watch(pipeline: Any) -> dict[str, list[dict[str, np.ndarray]]]:
    """Component -> its calls' inputs, filled as the pipeline draws."""
    seen: dict[str, list[dict[str, np.ndarray]]] = {}
    for name, component in pipeline.components.items():
        if name == "unet":
            seen[name] = calls = []
            component.register_forward_pre_hook(unet_hook(calls), with_kwargs=True)
        elif name.startswith("text_encoder") and component is not None:
            seen[name] = calls = []
            component.register_forward_pre_hook(text_hook(calls))
        elif name == "vae":
            calls = seen["vae_decoder"] = []
            component.decode = recording_decode(component.decode, calls)
    return seen


def unet_hook(calls: list[dict[str, np.ndarray]]) -> Any:
    def hook(module: Any, positional: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        record = {
            "sample": positional[0].numpy().copy(),
            "timestep": np.float32(positional[1]),
            "encoder_hidden_states": named["encoder_hidden_states"].numpy().copy(),
        }
        conditions = named.get("added_cond_kwargs") or {}
        calls.append({**record, **{key: value.numpy().copy() for key, value in conditions.items()}})

    return hook


def text_hook(calls: list[dict[str, np.ndarray]]) -> Any:
    def hook(module: Any, positional: tuple[Any, ...]) -> None:
        calls.append({"input_ids": positional[0].numpy().copy()})

    return hook


def recording_decode(inner: Any, calls: list[dict[str, np.ndarray]]) -> Any:
    def decode(latents: Any, *others: Any, **named: Any) -> Any:
        calls.append({"latent_sample": latents.numpy().copy()})
        return inner(latents, *others, **named)

    return decode


def pair_texts(calls: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Prompt and negative prompt as one batch of two, as pipelines that batch them would run them."""
    pairs = zip(calls[::2], calls[1::2], strict=True)
    return [{"input_ids": np.concatenate([a["input_ids"], b["input_ids"]])} for a, b in pairs]


if __name__ == "__main__":
    main(*sys.argv[1:])
