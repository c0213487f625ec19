"""The README.md of an artifact, in the hub's metadata format."""

from __future__ import annotations

import yaml

from sdcompress.files.manifest import Manifest
from sdcompress.planning.loaders import loading_code
from sdcompress.planning.plan import Plan
from sdcompress.planning.recipe import dump_recipe


def model_card(plan: Plan, manifest: Manifest) -> str:
    """Return Markdown that says what the artifact is, how to open it, and what became of each component."""
    source = plan.source
    metadata = {"library_name": "diffusers", "tags": ["sdcompress", "text-to-image"]}
    if source.hub_id:
        metadata["base_model"] = source.hub_id
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False).strip(),
        "---",
        f"# {source.name}, compressed",
        "",
        f"{plan.recipe.description.strip()} Made by sdcompress {manifest.sdcompress} from `{source.name}`.",
        "",
        "```python",
        loading_code(plan),
        "```",
        "",
        "| component | parameters | bytes before | bytes after | bits per weight |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, entry in manifest.components.items():
        size = entry.weights_bytes
        lines.append(
            f"| {name} | {entry.parameters.compressed:,} | {size.original:,} | {size.compressed:,} "
            f"| {entry.bits_per_weight:.2f} |"
        )
    lines += ["", "Bits per weight are over all weights of the component, scales and all. The recipe:", ""]
    lines += ["```yaml", dump_recipe(plan.recipe).rstrip(), "```", ""]
    return "\n".join(lines)
