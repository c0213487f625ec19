"""The terminal view of a described pipeline, 80 columns wide: its components, their kinds of layers, their bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdcompress.report.number_text import bytes_text

KIND_TITLES = {
    "linear": "linear", "conv3x3": "conv\n3x3", "conv1x1": "conv\n1x1", "conv": "other\nconv",
    "embedding": "embed-\nding", "norm": "norm", "other": "other",
}  # fmt: skip
NOTHING = "-"


def render(description: Mapping[str, Any], console: Console) -> None:
    """Print the description made by `describe`."""
    title = f"{description['model']}: {description['pipeline_class']}"
    where = description["path"] or description["hub_id"] or description["kind"]
    console.print(Text(title if where == description["model"] else f"{title} ({where})"))
    console.print(_component_table(description))
    console.print(_kind_table(description))
    console.print(_byte_table(description))
    if description["size_bytes"] is not None:
        console.print(Text(f"On disk, configs and tokenizers included: {bytes_text(description['size_bytes'])}"))
    for note in description["notes"]:
        console.print(Text(f"Note: {note}"))


def render_layers(layers: Mapping[str, Sequence[Mapping[str, Any]]], console: Console) -> None:
    """Print a line for each layer: its kind, its weight's shape, and its name, whole whatever the width."""
    for name, entries in layers.items():
        console.print(Text(f"{name}: {len(entries):,} layers"))
        for entry in entries:
            shape = " x ".join(map(str, entry["shape"]))
            console.print(Text(f"  {entry['kind']:<10} {shape:<22} {entry['layer']}"), soft_wrap=True)


def _component_table(description: Mapping[str, Any]) -> Table:
    table = _table("component", "parameters")
    table.add_column("class", overflow="fold")
    for name, values, ends_section in _rows(description):
        table.add_row(name, f"{values['parameters']:,}", values.get("class", ""), end_section=ends_section)
    return table


def _kind_table(description: Mapping[str, Any]) -> Table:
    total = description["totals"]["with_safety_checker"]["parameters_by_kind"]
    kinds = [kind for kind in KIND_TITLES if total[kind]]
    table = _table("% of parameters", *(KIND_TITLES[kind] for kind in kinds))
    for name, values, ends_section in _rows(description):
        counts = values["parameters_by_kind"]
        table.add_row(name, *(_percent(counts[k], values["parameters"]) for k in kinds), end_section=ends_section)
    return table


def _byte_table(description: Mapping[str, Any]) -> Table:
    widths = list(description["totals"]["with_safety_checker"]["bytes_at"])
    table = _table("weights", "as stored", *(f"at {width}" for width in widths))
    for name, values, ends_section in _rows(description):
        stored = " ".join((bytes_text(values["weights_bytes"]), *values.get("dtypes", ())))
        sizes = (bytes_text(values["bytes_at"][width]) for width in widths)
        table.add_row(name, stored, *sizes, end_section=ends_section)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True, vertical="bottom")
    for title in others:
        table.add_column(title, justify="right", vertical="bottom")
    return table


def _rows(description: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Yield name, values and whether a rule follows, for each component and each total."""
    components = description["components"]
    for i, (name, values) in enumerate(components.items(), start=1):
        yield name, values, i == len(components)
    totals = description["totals"]
    if description["has_safety_checker"]:
        yield "w/o safety checker", totals["without_safety_checker"], False
        yield "with safety checker", totals["with_safety_checker"], False
    else:
        yield "total", totals["with_safety_checker"], False


def _percent(part: int, whole: int) -> str:
    if not part:
        return NOTHING
    percent = 100 * part / whole
    return f"{percent:.1f}" if percent >= 0.05 else "<0.1"
