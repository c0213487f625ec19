"""A plan as JSON and as the tables that `sdcompress plan` shows."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sdcompress.files.manifest import LayerStatus
from sdcompress.planning.loaders import loader_of
from sdcompress.planning.plan import Plan
from sdcompress.report.layers import PRUNED, layer_text
from sdcompress.report.model import LayerFacts
from sdcompress.sources.spec import ComponentSpec


def describe_plan(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON: before, after, every layer with its format or the reason why it is left alone."""
    before, after = plan.source.components, plan.components_after
    return {
        "model": plan.source.name,
        "pipeline_class": plan.source.pipeline_class,
        "description": plan.recipe.description.strip(),
        "target": plan.recipe.target,
        "notes": list(plan.source.notes),
        "peak_memory_bytes": plan.peak_bytes,
        "original": _totals(list(before.values())),
        "compressed": _totals(list(after.values())),
        "parts": {
            step.component: {
                "steps": [{step.step.kind: step.step.model_dump(mode="json")}],
                "notes": list(step.planned.notes),
            }
            for step in plan.steps
            if step.component not in before
        },
        "components": {
            name: {
                "class_name": spec.class_name,
                "steps": [{step.step.kind: step.step.model_dump(mode="json")} for step in plan.steps_of(name)],
                "original": _totals([spec]),
                "compressed": _totals([after[name]]),
                "opens_with": loader_of(plan, name),
                "layers": _layers(plan, name),
                "notes": [note for step in plan.steps_of(name) for note in step.planned.notes],
            }
            for name, spec in before.items()
        },
    }


def render_plan(description: dict[str, Any], console: Console, *, layers: bool = False) -> None:
    """Print `describe_plan`'s result as tables; `layers` adds a line for each layer."""
    console.print(f"[bold]{description['model']}[/] ({description['pipeline_class']}): {description['description']}")
    for note in description["notes"]:
        console.print(f"[dim]{note}[/]")
    # 80 columns hold the digits of 16,860,369,000 parameters twice.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("component", no_wrap=True)
    for column in ("parameters", "after", "MB", "after", "bits"):
        table.add_column(column, justify="right")
    for name, part in description["components"].items():
        table.add_row(name, *_row(part))
    table.add_section()
    table.add_row("total", *_row(description))
    console.print(table)
    for name, part in description["components"].items():
        _render_component(name, part, console, layers)
    for name, part in description["parts"].items():
        console.print(f"[bold]{name}[/]: {escape(', '.join(part['notes']))}", highlight=False)
    console.print(f"Predicted peak memory: {description['peak_memory_bytes'] / 2**20:,.0f} MiB (the whole process)")


def _render_component(name: str, part: dict[str, Any], console: Console, layers: bool) -> None:
    steps = ", then ".join(next(iter(step)) for step in part["steps"]) or "copied as it is"
    console.print(f"[bold]{name}[/]: {steps}; opens with {part['opens_with']}", highlight=False)
    groups: dict[str, list[dict[str, Any]]] = {}
    for layer in part["layers"]:
        facts = {key: value for key, value in layer.items() if key != "status"}
        pruned = LayerStatus(layer["status"]) in PRUNED
        text = layer["reason"] if pruned else layer_text(LayerFacts(component=name, **facts))
        groups.setdefault(text, []).append(layer)
    for text, members in groups.items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(layer["kind"] for layer in members).items())
        parameters = sum(layer["parameters"] for layer in members)
        console.print(f"  {text}: {kinds} ({parameters:,} parameters)", highlight=False, markup=False)
        if layers:
            for layer in members:
                console.print(f"    {layer['layer']}", highlight=False, markup=False)
    for note in part["notes"]:
        console.print(f"  {note}", highlight=False, markup=False)


def _row(part: dict[str, Any]) -> tuple[str, ...]:
    before, after = part["original"], part["compressed"]
    return (
        f"{before['parameters']:,}",
        f"{after['parameters']:,}",
        f"{before['weights_bytes'] / 1e6:,.2f}",
        f"{after['weights_bytes'] / 1e6:,.2f}",
        f"{after['bits_per_weight']:.2f}",
    )


def _totals(specs: list[ComponentSpec]) -> dict[str, Any]:
    parameters = sum(spec.parameters for spec in specs)
    size_bytes = sum(spec.weights_bytes for spec in specs)
    return {
        "parameters": parameters,
        "weights_bytes": size_bytes,
        "bits_per_weight": 8 * size_bytes / parameters if parameters else 0.0,
    }


def _layers(plan: Plan, component: str) -> list[dict[str, Any]]:
    return [
        {
            "step": step.step.kind,
            "layer": outcome.layer,
            "kind": outcome.kind,
            "parameters": outcome.parameters,
            "format": outcome.format,
            "rounding": outcome.rounding,
            "reason": outcome.reason,
            "status": outcome.status.value,
        }
        for step in plan.steps_of(component)
        for outcome in step.planned.layers
    ]
