"""What `convert` says of the files it wrote: sizes, layers that stayed in 16 bits and why, and how to open them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.filesize import decimal


def conversion_lines(facts: Mapping[str, Any], out: Path, model: str) -> list[str]:
    """Return the lines for the terminal, of the facts of either target."""
    return _openvino_lines(facts, out) if "components" in facts else _gguf_lines(facts, out, model)


def _gguf_lines(facts: Mapping[str, Any], out: Path, model: str) -> list[str]:
    total = facts["parameters"]
    lines = [
        f"{facts['component']} ({facts['class_name']}): {total:,} parameters, {decimal(facts['size_bytes'])}, "
        f"{facts['bits_per_weight']:.2f} bits per weight; {facts['keys']} names, architecture {facts['architecture']}"
    ]
    for kind, count in sorted(facts["parameters_by_type"].items(), key=lambda item: -item[1]):
        lines.append(f"  {kind:<5} {count:>15,} parameters ({count / total:.1%})")
    lines += [f"  not {facts['type']}: {count:,}: {reason}" for reason, count in facts["parameters_left"].items()]
    lines.append("diffusers opens it:")
    lines += [f"    {line}" for line in _diffusers_code(facts, out, model)]
    if facts["keys"] == "original":
        lines.append("its names are those that stable-diffusion.cpp and ComfyUI-GGUF document (not tried with them)")
    return lines


def _diffusers_code(facts: Mapping[str, Any], out: Path, model: str) -> list[str]:
    config = facts["source"]["hub_id"] or (model if Path(model).is_dir() else "FOLDER OF THE PIPELINE")
    name = facts["class_name"]
    return [
        f"from diffusers import {name}, GGUFQuantizationConfig",
        f'{name}.from_single_file("{out}", config="{config}", subfolder="{facts["component"]}",',
        "    quantization_config=GGUFQuantizationConfig(compute_dtype=torch.bfloat16), torch_dtype=torch.bfloat16)",
    ]


def _openvino_lines(facts: Mapping[str, Any], out: Path) -> list[str]:
    lines = [
        f"{name}: {entry['parameters']['compressed']:,} parameters, {decimal(entry['weights_bytes']['compressed'])}"
        for name, entry in facts["components"].items()
    ]
    return [*lines, f'sdcompress.open_pipeline("{out}") opens it; so do optimum-intel\'s OpenVINO pipelines']
