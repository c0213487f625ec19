"""Writes what plans say of full-size models between the markers of docs/families/*.md.

    python benchmarks/family_sizes.py

A page says `<!-- sizes sdxl: fp16 int8 int4 -->` and `<!-- /sizes -->`; between them come the bytes of each recipe,
from plans of the catalog's entries. Nothing is measured here: plans need no weights.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sdcompress import load_recipe, open_source  # noqa: E402
from sdcompress.planning.plan import make_plan  # noqa: E402

PAGES = ROOT / "docs" / "families"
_MARKED = re.compile(r"(<!-- sizes ([\w.-]+): ([\w -]+?) -->\n).*?(<!-- /sizes -->)", re.DOTALL)


def main() -> None:
    for page in sorted(PAGES.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        page.write_text(with_sizes(text), encoding="utf-8")


def with_sizes(text: str) -> str:
    """The page with its tables as plans are now."""
    return _MARKED.sub(lambda match: f"{match[1]}{sizes_table(match[2], match[3].split())}\n{match[4]}", text)


def sizes_table(model: str, recipes: list[str]) -> str:
    """Recipe -> MB of each component and of all, of float16, bits per weight, and memory to compress in."""
    source = open_source(model)
    names = list(source.components)
    head = ["recipe", *(f"{name}, MB" for name in names), "all, MB", "of float16", "memory to compress, MB"]
    rows = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    cells = [_megabytes(source.components[name].weights_bytes) for name in names]
    rows.append(f"| float16 | {' | '.join(cells)} | {_megabytes(source.weights_bytes)} | | |")
    for recipe in recipes:
        plan = make_plan(load_recipe(recipe), source)
        after = plan.components_after
        total = sum(spec.weights_bytes for spec in after.values())
        cells = [_megabytes(after[name].weights_bytes) for name in names]
        rows.append(
            f"| `{recipe}` | {' | '.join(cells)} | {_megabytes(total)} | {total / source.weights_bytes:.2f}x "
            f"| {_megabytes(plan.peak_bytes)} |"
        )
    return "\n".join([*rows, "", f"{source.name}: {source.parameters:,} parameters. From `sdcompress plan {model}`."])


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f}"


if __name__ == "__main__":
    main()
