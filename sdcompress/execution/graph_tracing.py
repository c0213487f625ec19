"""Which graphs an export will need, and how many processes trace them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from sdcompress.backends.onnx.graph_tracing import GraphTracing
from sdcompress.environment import available_memory_bytes, cores_to_use
from sdcompress.families.onnx_parts import vae_scale
from sdcompress.planning.plan import RUNTIME_BYTES, RUNTIME_BYTES_OF, Plan
from sdcompress.planning.steps.export import Export

if TYPE_CHECKING:
    from sdcompress.backends.onnx.graph_cache import CachedGraph

# A child needs no weights. VmHWM, with the UNet of SD 1.5: 652 MiB; SDXL: 895 MiB.
CHILD_BYTES = RUNTIME_BYTES + RUNTIME_BYTES_OF["onnxscript"]


def graph_tracing(plan: Plan, components: Collection[str]) -> GraphTracing:
    """Return the tracing of the graphs of these components; of none for torch.

    There is a child for each further core, as far as the machine has memory free for them beside the plan's peak.
    """
    room = max(0, available_memory_bytes() - plan.peak_bytes) // CHILD_BYTES
    return GraphTracing(planned_graphs(plan, components), min(cores_to_use() - 1, room))


def planned_graphs(plan: Plan, components: Collection[str]) -> list[CachedGraph]:
    """Return the graphs that these components will be exported as."""
    if plan.recipe.target != "onnx":
        return []
    from sdcompress.backends.onnx.export import graphs_of

    scale = vae_scale(plan.modified_source.components)
    return [
        graph
        for step in plan.steps
        if isinstance(step.step, Export) and step.component in components
        for graph in graphs_of(step.before, step.step, scale)
    ]
