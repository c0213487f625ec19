"""The state of a run, kept in the artifact's `.partial` folder, so that a killed run can be resumed.

`state.json` holds the manifest entries of the finished components, the calibrated activation ranges, and a fingerprint
of what the run was started with. `training/COMPONENT` holds the checkpoints of a component that is trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdcompress.errors import ArtifactError
from sdcompress.files.artifact import write_json
from sdcompress.files.manifest import ComponentEntry
from sdcompress.planning.plan import Plan
from sdcompress.version import __version__

STATE_NAME = "state.json"
TRAINING_FOLDER = "training"


def training_folder(partial: Path, component: str) -> Path:
    """Return the folder of a component's checkpoints."""
    return partial / TRAINING_FOLDER / component


class RunState:
    """The state of one run. Each change is written to disk at once.

    Attributes:
        finished: component -> its entry in the manifest.
        ranges: calibrated activation ranges as JSON; None before they are calibrated.
    """

    def __init__(
        self,
        file: Path,
        fingerprint: str,
        finished: dict[str, ComponentEntry] | None = None,
        ranges: dict[str, Any] | None = None,
    ):
        self._file, self._fingerprint = file, fingerprint
        self.finished, self.ranges = finished or {}, ranges

    @classmethod
    def open(cls, partial: Path, plan: Plan, fresh: bool) -> RunState:
        """Return the state in the `.partial` folder, or that of a fresh run, whose folder is made.

        Raises:
            ArtifactError: there is no state to resume, or it is of another recipe, model or version.
        """
        fingerprint = _fingerprint(plan)
        file = partial / STATE_NAME
        if fresh:
            partial.mkdir(parents=True)
            state = cls(file, fingerprint)
            state._save()
            return state
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ArtifactError(
                f"{partial}: cannot be resumed (no readable {STATE_NAME}); start anew with --force"
            ) from None
        if saved["fingerprint"] != fingerprint:
            raise ArtifactError(
                f"{partial}: was begun with another recipe, model or version of sdcompress; start anew with --force"
            )
        finished = {name: ComponentEntry.model_validate(entry) for name, entry in saved["finished"].items()}
        return cls(file, fingerprint, finished, saved["ranges"])

    def finish(self, component: str, entry: ComponentEntry) -> None:
        """Keep that the component is written."""
        self.finished[component] = entry
        self._save()

    def save_ranges(self, ranges: dict[str, Any]) -> None:
        """Keep the calibrated ranges."""
        self.ranges = ranges
        self._save()

    def _save(self) -> None:
        finished = {name: entry.to_json() for name, entry in self.finished.items()}
        write_json(self._file, {"fingerprint": self._fingerprint, "finished": finished, "ranges": self.ranges})


def _fingerprint(plan: Plan) -> str:
    """Return what must be the same for a run to resume another: version, recipe, and the source's files and options.

    Fields of the recipe that a step calls changeable are left out.
    """
    sources = (plan.source, plan.modified_source)
    files = {where.file for each in sources for ranges in each.tensors.values() for where in ranges.values()}
    files |= {file for step in plan.steps for file in step.planned.reads}
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
    recipe = plan.recipe.model_dump(mode="json")
    for name, steps in plan.recipe.components.items():
        recipe["components"][name] = [
            {step.kind: step.model_dump(mode="json", exclude=set(step.changeable))} for step in steps
        ]
    return json.dumps([__version__, recipe, stats, plan.source.given_options])
