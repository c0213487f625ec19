"""Graphs that child processes trace."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install 'sdcompress[onnx]')")

from sdcompress import open_source
from sdcompress.backends.onnx import graph_tracing as processes
from sdcompress.backends.onnx.export import graphs_of
from sdcompress.backends.onnx.graph_cache import CachedGraph
from sdcompress.backends.onnx.graph_tracing import GraphTracing
from sdcompress.backends.onnx.settings import ExportSettings, StaticShapes
from sdcompress.environment import cores_to_use
from sdcompress.execution import graph_tracing as planning
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import load_recipe

SLEEPING = (sys.executable, "-c", "import time; time.sleep(300)")


@pytest.fixture
def graphs(nano_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[CachedGraph]:
    """Two graphs of a text encoder that an empty cache lacks."""
    monkeypatch.setenv("SDCOMPRESS_CACHE", str(tmp_path / "cache"))
    spec = open_source(str(nano_folder)).components["text_encoder"]
    fixed = ExportSettings(static_shapes=StaticShapes(height=64, width=64, sequence=16))
    return [graph for settings in (ExportSettings(), fixed) for graph in graphs_of(spec, settings, 8)]


def wait_for(file: Path) -> None:
    for _ in range(2000):
        if file.is_file():
            return
        time.sleep(0.05)
    raise AssertionError(f"no process wrote {file}")


def test_children_write_what_this_process_would(graphs: list[CachedGraph], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [graph.traced() for graph in graphs]
    monkeypatch.setattr(CachedGraph, "traced", lambda graph: pytest.fail("was traced here"))
    with GraphTracing(graphs, children=1) as tracing:
        for graph in graphs:
            wait_for(graph.file)
            assert tracing.graph(graph).graph.num_nodes() > 10
    assert [graph.file.read_bytes() for graph in graphs] == expected


def test_this_process_traces_another_graph_while_it_waits(
    graphs: list[CachedGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child never answers, so the wanted graph comes only after it is killed."""
    monkeypatch.setattr(processes, "_COMMAND", SLEEPING)
    with GraphTracing(graphs, children=1) as tracing:
        taken = graphs[1]
        while not tracing.is_traced_by_a_child(taken):
            time.sleep(0.01)

        def trace(graph: CachedGraph) -> bytes:
            if graph is not taken:
                tracing._children[0]._process.kill()
            return graph.part.folder.encode()

        monkeypatch.setattr(CachedGraph, "traced", trace)
        monkeypatch.setattr(CachedGraph, "load", lambda graph: graph.file.read_bytes())
        assert tracing.graph(taken) == b"text_encoder"
        assert graphs[0].file.is_file()


def test_dead_children_only_cost_time(graphs: list[CachedGraph], monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of tracing is the one that this process raises."""
    monkeypatch.setattr(processes, "_COMMAND", (sys.executable, "-c", "raise SystemExit(1)"))
    monkeypatch.setattr(CachedGraph, "traced", lambda graph: 1 / 0)
    with pytest.raises(ZeroDivisionError), GraphTracing(graphs, children=1) as tracing:
        tracing.graph(graphs[0])


def test_no_child_and_no_file_is_left_after_an_interruption(
    graphs: list[CachedGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_COMMAND", SLEEPING)
    tracing = GraphTracing(graphs, children=1)
    with pytest.raises(KeyboardInterrupt), tracing:
        raise KeyboardInterrupt
    (child,) = tracing._children
    assert child._process.returncode is not None and not child._thread.is_alive()
    assert not graphs[0].file.parent.exists()


def test_a_single_missing_graph_needs_no_child(graphs: list[CachedGraph], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_COMMAND", ("no such program",))
    graphs[0].keep(b"")
    with GraphTracing(graphs, children=4) as tracing:
        assert not tracing._children


@pytest.mark.parametrize(
    ("cores", "free_children", "expected"), [(1, 9, 0), (2, 9, 1), (8, 2, 2), (8, -1, 0), (8, 9, 4)]
)
def test_number_of_children(
    cores: int, free_children: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each further core, as far as memory is free beside the plan's peak; four for five graphs."""
    monkeypatch.setenv("SDCOMPRESS_CACHE", str(tmp_path))
    plan = make_plan(load_recipe("onnx-fp32"), open_source("tiny-sd"))
    monkeypatch.setattr(planning, "cores_to_use", lambda: cores)
    monkeypatch.setattr(
        planning, "available_memory_bytes", lambda: plan.peak_bytes + free_children * planning.CHILD_BYTES
    )
    assert planning.graph_tracing(plan, plan.source.components).children == expected
    torch_plan = make_plan(load_recipe("int8"), open_source("tiny-sd"))
    assert planning.graph_tracing(torch_plan, torch_plan.source.components).children == 0


def test_omp_num_threads_limits_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores_to_use() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cores_to_use() >= 1
