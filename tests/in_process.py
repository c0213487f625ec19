"""A worker without a process: starting one takes five seconds, and tests of evaluations need dozens."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from sdcompress.errors import EvaluationError
from sdcompress.evaluation.worker.loop import list_actions


class InProcess:
    """Answers in this process what a worker would; `left` drawings later it says that it was killed."""

    left = 10_000
    asked: ClassVar[Counter[str]] = Counter()

    def __init__(self, subject: str, log: Path, **_: Any):
        self.subject, self._actions = subject, list_actions()

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        if do in ("draw", "draw_batch") and not request.get("warm_up"):
            if not InProcess.left:
                raise EvaluationError(f"{self.subject}: its process was killed")
            InProcess.left -= 1
        if not request.get("warm_up"):
            InProcess.asked[do] += 1
        return json.loads(json.dumps(self._actions[do](**json.loads(json.dumps(request))), allow_nan=False))
