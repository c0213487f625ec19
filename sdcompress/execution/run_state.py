"""What of an artifact is finished, so that a run goes on where an earlier one was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdcompress.errors import ArtifactError
from sdcompress.files.artifact import write_json
from sdcompress.planning.plan import Plan
from sdcompress.version import __version__

STATE_NAME = "state.json"  # in the .partial folder: which components are finished


class RunState:
    """What of an artifact is finished, kept in its `.partial` folder."""

    def __init__(self, file: Path, finished: dict[str, Any], fingerprint: str, ranges: dict[str, Any] | None = None):
        self.file, self.finished, self.fingerprint, self.ranges = file, finished, fingerprint, ranges

    @classmethod
    def open(cls, partial: Path, plan: Plan, fresh: bool) -> RunState:
        fingerprint = _fingerprint(plan)
        file = partial / STATE_NAME
        if fresh:
            partial.mkdir(parents=True)
            state = cls(file, {}, fingerprint)
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
        return cls(file, saved["finished"], fingerprint, saved["ranges"])

    def finish(self, component: str, entry: dict[str, Any]) -> None:
        self.finished[component] = entry
        self._save()

    def keep_ranges(self, ranges: dict[str, Any]) -> None:
        self.ranges = ranges
        self._save()

    def _save(self) -> None:
        write_json(self.file, {"fingerprint": self.fingerprint, "finished": self.finished, "ranges": self.ranges})


def _fingerprint(plan: Plan) -> str:
    """What must be the same for a run to continue another: version, recipe, and the source's files and options.

    Of the recipe's fields those that a step calls changeable do not count.
    """
    files = sorted(
        {where.file for each in (plan.source, plan.prepared) for ranges in each.tensors.values()
         for where in ranges.values()} | {file for step in plan.steps for file in step.planned.reads}
    )  # fmt: skip
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    recipe = plan.recipe.model_dump(mode="json")
    for name, steps in plan.recipe.components.items():
        recipe["components"][name] = [
            {step.kind: step.model_dump(mode="json", exclude=set(step.changeable))} for step in steps
        ]
    return json.dumps([__version__, recipe, stats, plan.source.given_options])
