"""Writes the tables of README.md from benchmarks/results/*.json.

    python benchmarks/readme.py

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; tests/test_readme.py fails when one differs from its file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {README}")


def with_tables(text: str) -> str:
    """README.md's text with every generated table as the results say."""
    for name, make in {"recipes": recipes_table, "full-size": full_size_table}.items():
        result = json.loads((RESULTS / f"{name.replace('-', '_')}.json").read_text(encoding="utf-8"))
        block = f"<!-- {name} -->\n{make(result)}\n<!-- /{name} -->"
        text, count = re.subn(f"<!-- {name} -->.*<!-- /{name} -->", lambda _, block=block: block, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"README.md: {count} places for the table {name}; there must be one")
    return text


def recipes_table(result: dict[str, Any]) -> str:
    rows = _head("recipe", "bytes", "bits per weight", "CLIP drift [95 %]", "PSNR", "time per picture")
    for name, report in result["reports"].items():
        change, similarity = report["change"], report["similarity"]
        low, high = change["clip_score"]["interval_95"]
        identical = similarity["psnr_db"]["mean"] is None
        psnr = "identical" if identical else f"{similarity['psnr_db']['mean']:.1f} dB"
        bits = 8 * report["compressed"]["weights_bytes"] / report["compressed"]["parameters"]
        drift = f"{change['clip_score']['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
        rows.append(
            f"| `{name}` | {change['size_bytes']['ratio']:.2f}x | {bits:.2f} | {drift} | {psnr} "
            f"| {change['latency_s']['ratio']:.2f}x |"
        )
    first = next(iter(result["reports"].values()))
    original = first["original"]
    settings, machine = first["settings"], first["environment"]
    rows += [
        "",
        f"Original: {original['parameters']:,} parameters, {original['size_bytes'] / 1e6:.1f} MB, CLIP score "
        f"{original['clip_score']:.1f} by {first['scorer']['name']}; {settings['prompt_count']} prompts, "
        f"{settings['num_inference_steps']} steps; {machine['cores']} cores of {machine['cpu']}, float32.",
    ]
    return "\n".join(rows)


def full_size_table(result: dict[str, Any]) -> str:
    original = result["original_size_bytes"]
    rows = _head("recipe", "MB", "of the original", "UNet bits per weight", "peak MB", "seconds")
    for name, recipe in result["recipes"].items():
        rows.append(
            f"| `{name}` | {recipe['size_bytes'] / 1e6:,.0f} | {recipe['size_bytes'] / original:.3f}x "
            f"| {recipe['unet_bits_per_weight']:.2f} | {max(recipe['peak_bytes']) / 1e6:,.0f} "
            f"| {median(recipe['seconds']):.1f} |"
        )
    machine = result["environment"]
    rows += [
        "",
        f"Original: {original / 1e6:,.0f} MB in float16, copied in {median(result['copy_s']):.1f} s; "
        f"{machine['cores']} cores of {machine['cpu']}.",
    ]
    return "\n".join(rows)


def _head(first: str, *others: str) -> list[str]:
    return [f"| {' | '.join((first, *others))} |", "|---|" + "---:|" * len(others)]


if __name__ == "__main__":
    main()
