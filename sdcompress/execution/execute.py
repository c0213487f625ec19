"""Carrying out a plan: one component after another, one tensor at a time, into a folder that is published last."""

from __future__ import annotations

import errno
import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdcompress.backends.component import Component, TrainingContext
from sdcompress.environment import installed_versions
from sdcompress.errors import ArtifactError, SdcompressError, SourceError, TrainingError
from sdcompress.execution.graph_tracing import graph_tracing
from sdcompress.execution.model_card import model_card
from sdcompress.execution.pruning import (
    apply_pruning_steps,
    gather_input_statistics,
    later_steps,
    pruned_source,
    pruning_steps,
)
from sdcompress.execution.ranges import Ranges, calibrate_ranges, dump_ranges, parse_ranges
from sdcompress.execution.run_state import STATE_NAME, TRAINING_FOLDER, RunState, training_folder
from sdcompress.execution.write_component import write_component
from sdcompress.files.artifact import check_output, list_files, partial_folder, publish, write_json
from sdcompress.files.manifest import MANIFEST_NAME, MANIFEST_SCHEMA, Manifest, SourceEntry
from sdcompress.planning.plan import Plan
from sdcompress.progress import Listener, ProgressEvent, silent
from sdcompress.sources.source import Source
from sdcompress.version import __version__

if TYPE_CHECKING:
    import torch

_SPARE_BYTES = 2**20


def execute(
    plan: Plan, out: Path, *, resume: bool = False, force: bool = False, listener: Listener = silent
) -> Manifest:
    """Write the artifact of a plan to `out`, and return its manifest.

    After an error nothing is left of a fresh run. An interrupted run leaves `OUT.partial`.

    Args:
        resume: continue an interrupted run.
        force: replace an earlier artifact, and an interrupted run.
        listener: told of the calibration runs, of training, and of the bytes of each component that are done.

    Raises:
        ArtifactError: `out` is in the way, or the disk is full.
        SourceError: the weights are missing or cannot be read.
        TrainingError: training failed; its last checkpoint is kept.
    """
    source = plan.source
    _check_weights(source)
    check_output(out, resume=resume, force=force)
    partial = partial_folder(out)
    fresh = not (resume and partial.exists())
    if fresh:
        shutil.rmtree(partial, ignore_errors=True)
    with _cleaning_up(partial, fresh), ExitStack() as running:
        state = RunState.open(partial, plan, fresh)
        _check_space(plan, out, state)
        due = set(source.components) - set(state.finished)
        tracing = running.enter_context(graph_tracing(plan, due))
        progress = _WritingProgress(plan.modified_source.weights_bytes, listener)
        readers = {name: _ReportingReader(plan.modified_source, name, progress) for name in source.components}
        components = _prune(plan, readers, partial, listener) if due else {}
        pruned = pruned_source(plan, components)
        ranges = _activation_ranges(plan, pruned, state, listener)
        statistics = gather_input_statistics(plan, pruned, later_steps(plan.steps), listener) if due else {}
        del pruned  # it holds trained weights
        for name in source.components:
            if name in state.finished:
                readers[name].report_all()
                continue
            readers[name].report("graph" if plan.recipe.target == "onnx" else "")
            component = replace(components.pop(name), statistics=statistics.get(name, {}))
            state.finish(name, write_component(plan, component, partial, ranges.get(name, {}), tracing))
        _copy_files(plan, partial)
        manifest = _manifest(plan, state)
        (partial / "README.md").write_text(model_card(plan, manifest), encoding="utf-8")
        (partial / STATE_NAME).unlink()
        shutil.rmtree(partial / TRAINING_FOLDER, ignore_errors=True)
        manifest = manifest.model_copy(update={"files": list_files(partial)})
        write_json(partial / MANIFEST_NAME, manifest.to_json())
        publish(partial, out)
    return manifest


@dataclass
class _WritingProgress:
    """How many bytes of the source's weights were read, of how many."""

    total_bytes: int
    listener: Listener
    done_bytes: int = 0


class _ReportingReader:
    """Reads a component's stored tensors, and reports how many bytes were read at least once."""

    def __init__(self, source: Source, component: str, progress: _WritingProgress):
        self._spec, self._read, self._progress = source.components[component], source.reader(component), progress
        self._unread = set(self._spec.tensors)

    def __call__(self, tensor: str) -> torch.Tensor:
        if tensor in self._unread:  # some steps read a tensor more than once
            self._unread.remove(tensor)
            self._progress.done_bytes += self._spec.tensors[tensor].size_bytes
            self.report()
        return self._read(tensor)

    def report(self, note: str = "") -> None:
        """Report what was read so far."""
        done, total = self._progress.done_bytes, self._progress.total_bytes
        self._progress.listener(ProgressEvent("writing", self._spec.name, done, total, "bytes", note))

    def report_all(self) -> None:
        """Report that all is done."""
        self._progress.done_bytes += sum(self._spec.tensors[tensor].size_bytes for tensor in self._unread)
        self._unread.clear()
        self.report()


def _prune(plan: Plan, readers: dict[str, _ReportingReader], partial: Path, listener: Listener) -> dict[str, Component]:
    """Return all components after their pruning steps."""
    source = plan.modified_source
    originals = gather_input_statistics(plan, source, pruning_steps(plan.steps), listener)
    return {
        name: apply_pruning_steps(
            plan,
            name,
            readers[name],
            originals.get(name, {}),
            TrainingContext(source, training_folder(partial, name), listener),
        )
        for name in plan.source.components
    }


def _activation_ranges(plan: Plan, source: Source, state: RunState, listener: Listener) -> Ranges:
    """Return the plan's activation ranges: those that the run kept before it was killed, or new ones."""
    if state.ranges is not None:
        return parse_ranges(state.ranges)
    ranges = calibrate_ranges(plan, source, listener)
    state.save_ranges(dump_ranges(ranges))
    return ranges


def _check_weights(source: Source) -> None:
    if source.path is not None:
        return
    if source.kind == "single-file":
        raise SourceError(
            f"{source.name}: its tokenizers' vocabularies are not here; `sdcompress.sources.hub.with_weights` "
            f"fetches them, or name a pipeline's folder that has them with --like"
        )
    raise SourceError(
        f"{source.name}: is a catalog entry without weights; give a folder, or the hub id {source.hub_id}"
    )


@contextmanager
def _cleaning_up(partial: Path, fresh: bool) -> Iterator[None]:
    """Remove what a fresh run wrote, new parent folders included, if it fails so that resuming would not help."""
    missing = [folder for folder in (partial, *partial.parents) if not folder.exists()]
    try:
        yield
    except OSError as error:
        if fresh:
            shutil.rmtree(missing[-1], ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ArtifactError(
                f"{partial.parent}: the disk is full; free some space or choose another --out"
            ) from None
        raise ArtifactError(f"{error.filename or partial}: cannot be written ({error.strerror})") from None
    except TrainingError:
        raise  # its checkpoint can be continued with other settings
    except SdcompressError:
        if fresh:
            shutil.rmtree(missing[-1], ignore_errors=True)
        raise


def _check_space(plan: Plan, out: Path, state: RunState) -> None:
    others = sum(plan.modified_source.file_bytes(file) for file in plan.modified_source.other_files)
    due = sum(plan.after(name).weights_bytes for name in plan.source.components if name not in state.finished)
    scratch = max(
        (step.planned.scratch_bytes for step in plan.steps if step.component not in state.finished), default=0
    )
    needed = due + others + scratch + _SPARE_BYTES
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise ArtifactError(
            f"{out.parent}: the disk is full: the artifact needs {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are "
            f"free; free some space or choose another --out"
        )


def _copy_files(plan: Plan, partial: Path) -> None:
    """Copy the files that no step changes; a component's config.json is written with its weights."""
    written = {Path(name) / "config.json" for name in plan.source.components}
    for relative in plan.modified_source.other_files:
        if relative not in written:
            plan.modified_source.copy_file(relative, partial / relative)


def _manifest(plan: Plan, state: RunState) -> Manifest:
    source, options = plan.source, plan.source.given_options
    given = {"options": options} if options else {}
    optional = {"replaced_parts": plan.replaced_parts, "activation_ranges": state.ranges}
    return Manifest(
        schema_version=MANIFEST_SCHEMA,
        sdcompress=__version__,
        source=SourceEntry(name=source.name, kind=source.kind, hub_id=source.hub_id, **given),
        recipe=plan.recipe.model_dump(mode="json"),
        pipeline_class=source.pipeline_class,
        versions={"python": platform.python_version(), **installed_versions()},
        components={name: state.finished[name] for name in source.components},
        **{name: value for name, value in optional.items() if value},
    )
