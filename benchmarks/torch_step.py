"""One guidance step of Stable Diffusion 1.5's UNet in our torch modules, against the same UNet in bfloat16.

    python benchmarks/torch_step.py [--contenders int8 int4/64 ...] [--rounds 5] [--threads N]

Every linear layer and convolution is quantized, those too that recipes spare. Weights are random, seeded and rounded
to nearest (palettes are quantiles): they say nothing about quality but all about time. Computed in bfloat16,
channels_last, batch 2 for guidance, latents of 64x64. All contenders are in one process, on the same inputs, and take
turns, A B C A B C, so that drift hits all alike; a ratio is to bfloat16's step of the same round. `relative_error`
compares outputs with bfloat16's, so that a fast wrong answer shows. Let nothing else run meanwhile.
Keeps raw samples in benchmarks/results/torch_step.json, and the ratios that plans show in
sdcompress/planning/step_cost.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.full_size import commit  # noqa: E402
from sdcompress.backends.torch.modules import cast_scales, replace_layers  # noqa: E402
from sdcompress.backends.torch.packaging import package  # noqa: E402
from sdcompress.environment import describe_cpu, describe_environment  # noqa: E402
from sdcompress.planning import step_cost  # noqa: E402
from sdcompress.planning.step_cost import ROUNDED  # noqa: E402
from sdcompress.quant.corrections.hadamard import rotated_weight  # noqa: E402
from sdcompress.quant.format import QuantFormat, QuantizedTensor  # noqa: E402
from sdcompress.quant.formats.codebook import Codebook  # noqa: E402
from sdcompress.quant.grid import Grid  # noqa: E402
from sdcompress.quant.registry import from_label  # noqa: E402
from sdcompress.sources import catalog  # noqa: E402
from sdcompress.sources.spec import parameter  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "torch_step.json"
BASELINE = "bf16"
CONTENDERS = (
    *("int8", "int8" + ROUNDED, "uint8/64", "uint6/64", "uint5/64", "int4/64", "uint4/64", "uint4/64+scale8"),
    *("uint4/64+rank16", "uint4/64+hadamard", "normal-float4/64", "uint3/64", "uint2/32"),
    *("codebook8", "codebook6", "codebook5", "codebook4", "codebook3", "codebook2", "nf4", "llm-int8"),
)
WARM_UPS = 1


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    models: dict[str, nn.Module] = {BASELINE: random_unet()}
    for name in arguments.contenders:
        start = time.perf_counter()
        models[name] = quantized_unet(models[BASELINE], name)
        print(f"made: {name}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    inputs = step_inputs()
    outputs = {name: model(**inputs).sample for name, model in models.items() for _ in range(WARM_UPS)}
    seconds = take_turns(models, inputs, arguments.rounds)
    result = {
        "command": "python benchmarks/torch_step.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": {**describe_environment(), "instructions": describe_cpu()["instructions"]},
        "model": "sd15's UNet, random weights, seed 0; bfloat16, channels_last, batch 2, latents of 64x64",
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "baseline": BASELINE,
        "contenders": {
            name: {
                "size_bytes": sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()),
                "relative_error": relative_error(outputs[name], outputs[BASELINE]),
                "seconds": seconds[name],
            }
            for name, model in models.items()
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.out == RESULT:
        step_cost.FILE.write_text(json.dumps(summary_of(result), indent=1) + "\n", encoding="utf-8")
    print(step_table(result))
    print(f"written: {arguments.out}", file=sys.stderr)


def take_turns(
    models: Mapping[str, nn.Module], inputs: Mapping[str, torch.Tensor], rounds: int
) -> dict[str, list[float]]:
    """Model -> seconds of its steps, one a round, the models in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            start = time.perf_counter()
            model(**inputs)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what plans show of a result: the ratios of the contenders' times to the baseline's, and the machine."""
    seconds = {label: contender["seconds"] for label, contender in result["contenders"].items()}
    baseline = seconds.pop(result["baseline"])
    ratios = {
        step_cost.cost_key(*parsed(label)): round(median(a / b for a, b in zip(own, baseline, strict=True)), 2)
        for label, own in seconds.items()
    }
    machine = f"{result['threads']} threads of {result['environment']['cpu']}"
    return {"machine": machine, "ratios": dict(sorted(ratios.items()))}


def parsed(label: str) -> tuple[QuantFormat, bool]:
    """The format a contender's label names, and whether its linear layers round their inputs."""
    return from_label(label.removesuffix(ROUNDED)), label.endswith(ROUNDED)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="*", default=list(CONTENDERS), help="labels of formats")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args()


def random_unet() -> nn.Module:
    """SD 1.5's UNet in bfloat16 and channels_last; weights of a spread that keeps activations finite."""
    from diffusers import UNet2DConditionModel

    spec = catalog.open_component("unet-sd1", "unet", "diffusers")
    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(dict(spec.config)).to(torch.bfloat16)
    model = model.to_empty(device="cpu").to(memory_format=torch.channels_last).eval()
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if value.dim() == 1:
            value.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            value.normal_(0, value[0].numel() ** -0.5, generator=generator)
    return model


def quantized_unet(original: nn.Module, label: str) -> nn.Module:
    """A UNet that shares all but its linear layers and convolutions with `original`, these in the format `label`."""
    layers = [name for name, module in original.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    with torch.device("meta"):
        model = type(original).from_config(original.config).to(torch.bfloat16).eval()
    fmt, rounded = parsed(label)
    linear = [name for name in layers if isinstance(original.get_submodule(name), nn.Linear)]
    # A layer of few channels has no use for a low-rank correction.
    formats = {
        name: fmt if fmt.rank < len(original.get_submodule(name).weight) else replace(fmt, rank=0) for name in layers
    }
    replace_layers(model, formats, linear if rounded else ())
    shared = dict(original.named_parameters())
    for name, _ in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, shared[name])
    for layer in layers:
        module = model.get_submodule(layer)
        for part, value in quantized_parts(shared[f"{layer}.weight"], formats[layer]).items():
            setattr(module, part, value)
    cast_scales(model)
    return model.to(memory_format=torch.channels_last)


def quantized_parts(weight: torch.Tensor, fmt: QuantFormat) -> dict[str, torch.Tensor]:
    """Part -> tensor as stored. Palettes are quantiles of a normal distribution, and low-rank corrections are 0:
    k-means and singular vectors would take minutes, and their values do not change the time of a step."""
    tensor: QuantizedTensor
    if fmt.hadamard:
        weight = rotated_weight(weight.float()).to(weight.dtype)
    if isinstance(fmt, Codebook):
        levels = [NormalDist().inv_cdf((index + 0.5) / 2**fmt.bits) for index in range(2**fmt.bits)]
        palette = (torch.tensor(levels, device=weight.device) * weight.float().std()).half().unsqueeze(0)
        grid = Grid(None, None, palette[0].float(), 0, 2**fmt.bits - 1, {"palette": palette})
        tensor = fmt.assemble(fmt.nearest(weight.float().contiguous(), grid), grid, tuple(weight.shape))
    else:
        tensor = replace(fmt, rank=0).quantize(weight.contiguous())
    if fmt.rank:
        rows, columns = weight.flatten(1).shape
        up = torch.zeros(rows, fmt.rank, dtype=torch.float16, device=weight.device)
        down = torch.zeros(fmt.rank, columns, dtype=torch.float16, device=weight.device)
        tensor = replace(tensor, format=fmt, low_rank_up=up, low_rank_down=down)
    stored = package(tensor, "", parameter(tuple(weight.shape), "BF16"), stock=False)
    return {name.removeprefix("."): value for name, value in stored.items()}


def step_inputs() -> dict[str, torch.Tensor]:
    """What a guidance step gives the UNet: two latents, one timestep, two texts of 77 tokens."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 64, 64, generator=generator).to(torch.bfloat16)
    return {
        "sample": latents.contiguous(memory_format=torch.channels_last),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 77, 768, generator=generator).to(torch.bfloat16),
    }


def relative_error(output: torch.Tensor, reference: torch.Tensor) -> float:
    """|output - reference| / |reference|."""
    return float((output.float() - reference.float()).norm() / reference.float().norm())


def step_table(result: Mapping[str, Any]) -> str:
    """Markdown: median seconds, their range, and the median and range of the ratios to the baseline's rounds."""
    baseline = result["contenders"][result["baseline"]]["seconds"]
    lines = ["| weights | MB | seconds | range | of bfloat16 | range | output error |", "|---|---|---|---|---|---|---|"]
    for name, one in result["contenders"].items():
        seconds = one["seconds"]
        ratios = [own / base for own, base in zip(seconds, baseline, strict=True)]
        lines.append(
            f"| {name} | {one['size_bytes'] / 1e6:.0f} | {median(seconds):.2f} | {min(seconds):.2f}-{max(seconds):.2f} "
            f"| {median(ratios):.2f} | {min(ratios):.2f}-{max(ratios):.2f} | {one['relative_error']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
