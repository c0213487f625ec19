"""Tracing graphs in child processes, beside whatever this process does until it needs them.

Tracing keeps one core busy and needs no weights, only specs, which the plan has. As a program, this module is such a
child: it reads a pickled `CachedGraph` at a time and answers with the content of its file.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sdcompress.backends.onnx.graph_cache import CachedGraph

if TYPE_CHECKING:
    import onnx_ir as ir

_COMMAND = (sys.executable, "-m", "sdcompress.backends.onnx.graph_tracing")


class GraphTracing:
    """The graphs of an export, of which children trace the ones that the cache lacks. Each is traced once.

    Use it as a context manager: the children start with it, and it ends them, whatever happened. A child that fails or
    is killed only saves no time: this process traces the graph itself, and so raises what is wrong with it.

    Args:
        graphs: the graphs that will be asked for.
        children: the most processes that may trace beside this one. A single missing graph is traced here.
    """

    def __init__(self, graphs: Iterable[CachedGraph] = (), children: int = 0):
        missing = {graph.file: graph for graph in graphs if not graph.file.is_file()}
        # The largest last: children begin with it, because it takes longest.
        self._waiting = dict(sorted(missing.items(), key=lambda each: len(each[1].spec.tensors)))
        self._traced_by_children: set[Path] = set()
        self._changed = threading.Condition()
        self.children = max(0, min(children, len(missing) - 1))
        self._children: list[_Child] = []

    def __enter__(self) -> GraphTracing:
        with suppress(OSError):  # no child can be started
            for _ in range(self.children):
                self._children.append(_Child(self))
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._waiting.clear()
        for child in self._children:
            child.end()

    def graph(self, wanted: CachedGraph) -> ir.Model:
        """Return the graph; its parameters are initializers without values."""
        while not wanted.file.is_file():
            with self._changed:
                elsewhere = self.is_traced_by_a_child(wanted)
                if elsewhere and not self._waiting:
                    self._changed.wait(timeout=1)  # with a timeout, Ctrl-C gets through on Windows too
                    continue
                graph = self._waiting.popitem()[1] if elsewhere else self._waiting.pop(wanted.file, wanted)
            graph.keep(graph.traced())
        return wanted.load()

    def is_traced_by_a_child(self, graph: CachedGraph) -> bool:
        """Return whether a child traces the graph now."""
        return graph.file in self._traced_by_children

    def take(self) -> CachedGraph | None:
        """Return a graph that a child is to trace now; None if no more are waiting."""
        with self._changed:
            if not self._waiting:
                return None
            file, graph = self._waiting.popitem()
            self._traced_by_children.add(file)
            return graph

    def give_back(self, graph: CachedGraph) -> None:
        """Note that no child traces the graph any more. If it is not in the cache, it will be traced here."""
        with self._changed:
            self._traced_by_children.discard(graph.file)
            self._changed.notify_all()


class _Child:
    """A child process, and the thread that hands it one graph after another."""

    def __init__(self, tracing: GraphTracing):
        self._tracing = tracing
        search = os.pathsep.join(filter(None, (str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # its errors are raised by the parent, which traces the graph itself
            env={**os.environ, "PYTHONPATH": search},
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends its children
        )
        self._thread = threading.Thread(target=self._hand_over, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """End the process, even while it traces."""
        self._process.kill()
        self._thread.join()
        self._process.wait()

    def _hand_over(self) -> None:
        with suppress(OSError, EOFError, pickle.UnpicklingError), self._process as process:  # raised if it died
            assert process.stdin is not None and process.stdout is not None
            while (graph := self._tracing.take()) is not None:
                try:
                    pickle.dump(graph, process.stdin)
                    process.stdin.flush()
                    graph.keep(pickle.load(process.stdout))
                finally:
                    self._tracing.give_back(graph)


def _trace_what_is_asked(requests: BinaryIO, answers: BinaryIO) -> None:
    while True:
        try:
            graph = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(graph.traced(), answers)
        answers.flush()


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "wb") as stdout:
        os.dup2(2, 1)  # what libraries print is no answer
        _trace_what_is_asked(sys.stdin.buffer, stdout)
