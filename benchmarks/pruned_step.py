"""One guidance step of Stable Diffusion 1.5's UNet in torch, pruned in several ways, against the whole one.

    python benchmarks/pruned_step.py [--contenders NAME ...] [--rounds 3] [--threads N]

Weights are random, seeded and shared by all contenders: they say nothing about quality but all about time. Computed in
bfloat16, channels_last, batch 2 for guidance, latents of 64x64. All are in one process, on the same inputs, and take
turns, A B C A B C, so that drift hits all alike; a ratio is to the whole UNet's step of the same round. MACs are those
of matrix products and convolutions, counted by torch on tensors without values. Let nothing else run meanwhile.
Keeps raw samples in benchmarks/results/pruned_step.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.full_size import commit  # noqa: E402
from benchmarks.torch_step import random_unet, step_inputs, take_turns  # noqa: E402
from sdcompress.backends.component import Component  # noqa: E402
from sdcompress.backends.torch.pruned_modules import rebuild  # noqa: E402
from sdcompress.environment import describe_cpu, describe_environment  # noqa: E402
from sdcompress.planning.steps.prune import Prune  # noqa: E402
from sdcompress.sources import catalog  # noqa: E402
from sdcompress.sources.pruned_config import pruning_of  # noqa: E402
from sdcompress.sources.spec import ComponentSpec  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "pruned_step.json"
BASELINE = "whole"
CONTENDERS: Mapping[str, Mapping[str, Any]] = {
    "pattern: bk-sdm-base": {"pattern": "bk-sdm-base"},
    "pattern: bk-sdm-small": {"pattern": "bk-sdm-small"},
    "pattern: bk-sdm-tiny": {"pattern": "bk-sdm-tiny"},
    # A third of the parameters twice: where pictures are largest and steps slowest, and where they are smallest.
    "remove: [up_blocks.1, up_blocks.2, up_blocks.3]": {"remove": ("up_blocks.1", "up_blocks.2", "up_blocks.3")},
    "remove: [mid_block, down_blocks.3, up_blocks.0]": {"remove": ("mid_block", "down_blocks.3", "up_blocks.0")},
    "heads: 75%, feed_forward: 75%, resnet_channels: 60%": {
        "heads": 0.75,
        "feed_forward": 0.75,
        "resnet_channels": 0.6,
    },
}
WARM_UPS = 1


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    whole = random_unet()
    models = {BASELINE: whole, **{name: pruned_unet(whole, CONTENDERS[name]) for name in arguments.contenders}}
    inputs = step_inputs()
    for name, model in models.items():
        for _ in range(WARM_UPS):
            if not bool(model(**inputs).sample.isfinite().all()):
                raise SystemExit(f"{name}: gives NaN or infinity")
    seconds = take_turns(models, inputs, arguments.rounds)
    result = {
        "command": "python benchmarks/pruned_step.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": {**describe_environment(), "instructions": describe_cpu()["instructions"]},
        "model": "sd15's UNet, random weights, seed 0; bfloat16, channels_last, batch 2, latents of 64x64",
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "baseline": BASELINE,
        "contenders": {
            name: {
                "parameters": sum(value.numel() for value in model.parameters()),
                "macs": macs(model, inputs),
                "seconds": seconds[name],
            }
            for name, model in models.items()
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(pruned_step_table(result))
    print(f"written: {arguments.out}", file=sys.stderr)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="*", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args()


def pruned_unet(whole: nn.Module, parameters: Mapping[str, Any]) -> nn.Module:
    """The UNet after a prune step with these parameters, sharing with the whole one what was not cut."""
    spec = catalog.open_component("unet-sd1", "unet", "diffusers")
    part = Component(spec, whole.state_dict().__getitem__)
    step = Prune(**parameters)
    planned = step.plan(spec, "torch")
    after = step.apply(part, planned)
    model = empty_unet(planned.spec)
    model.load_state_dict({name: after.read(name) for name in planned.spec.tensors}, strict=True, assign=True)
    return model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]


def empty_unet(spec: ComponentSpec) -> nn.Module:
    """The UNet of the spec without values, in bfloat16."""
    from diffusers import UNet2DConditionModel

    config = {name: value for name, value in spec.config.items() if name != "quantization_config"}
    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(config).to(torch.bfloat16)
    rebuild(model, pruning_of(spec.config))
    return model  # type: ignore[no-any-return]


def macs(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> int:
    """Multiply-accumulates of a step, attention's products included."""
    from torch.func import functional_call
    from torch.utils.flop_counter import FlopCounterMode

    bare = {name: torch.empty_like(value, device="meta") for name, value in model.state_dict().items()}
    at_hand = {name: value.to("meta") for name, value in inputs.items()}
    with FlopCounterMode(display=False) as counter:
        functional_call(model, bare, kwargs=at_hand)
    return counter.get_total_flops() // 2


def pruned_step_table(result: Mapping[str, Any]) -> str:
    """Markdown: parameters and MACs, median seconds and their range, and the ratios to the whole UNet's rounds."""
    lines = [
        "| `prune` | parameters | of the whole | MACs | seconds (range) | of the whole's (range) |",
        "|---|" + "---:|" * 5,
    ]
    whole = result["contenders"][result["baseline"]]
    for name, one in result["contenders"].items():
        seconds = one["seconds"]
        ratios = [own / base for own, base in zip(seconds, whole["seconds"], strict=True)]
        lines.append(
            f"| {name if name == result['baseline'] else f'`{name}`'} | {one['parameters'] / 1e6:.0f} M "
            f"| {one['parameters'] / whole['parameters']:.2f}x | {one['macs'] / whole['macs']:.2f}x "
            f"| {median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f}) "
            f"| {median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
