"""Tables of quality over bytes: the one of docs/benchmarks.md, and one with every point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.quality.contender import ORIGINAL, OURS, PEERS, SCOPES
from benchmarks.quality.points import (
    Point,
    above_frontier,
    clip_interval,
    clip_of,
    drawn,
    frontier,
    psnr_interval,
    psnr_of,
)

HEAD = ("contender", "quantized", "MB", "bits per weight", "UNet's", "PSNR [95 %]", "CLIP drift [95 %]")


def quality_per_byte_table(result: Mapping[str, Any]) -> str:
    """Our frontier and the peers' best points, from large to small, and what of the peers lies above our frontier."""
    points = result["points"]
    chosen = [*frontier(drawn(points, OURS)), *frontier(drawn(points, PEERS))]
    rows = [_row(point, result) for point in sorted(chosen, key=lambda point: -point["total_bytes"])]
    floor = next(point for point in points if point["name"] == "original-other-seed")
    versions = result["peers_environment"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("bitsandbytes", "torchao", "optimum-quanto", "sdnq"))
    total = sum(result["parameters"].values())
    return "\n".join(
        (
            *_head(*HEAD),
            *rows,
            "",
            _verdict(points),
            "",
            f"{result['model']}: {total:,} weights in text encoder, UNet and VAE, {2 * total / 1e6:.1f} MB in float16; "
            f"{len(result['drawings'])} prompts, {result['options']['num_inference_steps']} steps, float32 arithmetic; "
            f"the frontiers of {len(drawn(points, OURS))} points of ours and {len(drawn(points, PEERS))} of {named}. "
            f"Another seed: {_psnr(floor)}, CLIP drift {_clip(floor)}.",
        )
    )


def every_point(result: Mapping[str, Any]) -> str:
    """All points, the originals first, then by bytes; those that failed or were not run last, with the reason."""
    points = result["points"]
    shown = [*drawn(points, ORIGINAL), *sorted((*drawn(points, OURS), *drawn(points, PEERS)), key=_by_bytes)]
    rows = [_row(point, result) for point in shown]
    failed = [f"- {point['label']} ({point['key']}): {point['failed']}" for point in points if point["failed"]]
    skipped = [f"- {key}: {reason}" for key, reason in result["skipped"].items()]
    return "\n".join((*_head(*HEAD), *rows, "", *failed, *skipped))


def _row(point: Point, result: Mapping[str, Any]) -> str:
    bits = 8 * point["total_bytes"] / sum(result["parameters"].values())
    label = f"**{point['label']}**" if point["owner"] == OURS else point["label"]
    cells = (
        label,
        "nothing" if point["owner"] == ORIGINAL else SCOPES[point["scope"]],
        f"{point['total_bytes'] / 1e6:.2f}",
        f"{bits:.2f}",
        f"{unet_bits(point, result):.2f}",
        _psnr(point),
        _clip(point),
    )
    return f"| {' | '.join(cells)} |"


def _verdict(points: Sequence[Point]) -> str:
    """A sentence: how many of the peers' points lie above our frontier, and which."""
    peers = drawn(points, PEERS)
    above = above_frontier(points)
    if not above:
        return f"None of the peers' {len(peers)} points has a higher PSNR than a point of ours of at most its bytes."
    labels = {point["key"]: point for point in peers}
    named = []
    for entry in above:
        peer = labels[entry["peer"]]
        what = f"{peer['label']} ({SCOPES[peer['scope']]}, {peer['total_bytes'] / 1e6:.2f} MB)"
        if entry["ours"] is None:
            named.append(f"{what}: nothing of ours is as small")
            continue
        behind, interval = entry["behind_db"]["mean"], entry["behind_db"]["interval_95"]
        spread = "" if interval is None else f" [{interval[0]:+.1f}, {interval[1]:+.1f}]"
        named.append(f"{what}: {behind:+.1f}{spread} dB over ours")
    return f"Of the peers' {len(peers)} points {len(above)} lie above our frontier: {'; '.join(named)}."


def _psnr(point: Point) -> str:
    interval = psnr_interval(point)
    if not any(value is not None for value in point["psnr_db"]):
        return "identical"
    spread = "" if interval is None else f" [{interval[0]:.1f}, {interval[1]:.1f}]"
    return f"{psnr_of(point):.1f} dB{spread}"


def _clip(point: Point) -> str:
    interval = clip_interval(point)
    spread = "" if interval is None else f" [{interval[0]:+.2f}, {interval[1]:+.2f}]"
    return f"{clip_of(point):+.2f}{spread}"


def _by_bytes(point: Point) -> tuple[int, str]:
    return point["total_bytes"], point["key"]


def _head(first: str, *others: str) -> list[str]:
    return [f"| {' | '.join((first, *others))} |", "|---|---|" + "---:|" * (len(others) - 1)]


def unet_bits(point: Point, result: Mapping[str, Any]) -> float:
    """Effective bits a weight of the UNet: codes, scales and what is left in float16."""
    return 8 * point["component_bytes"]["unet"] / result["parameters"]["unet"]
