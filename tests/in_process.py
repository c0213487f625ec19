"""A worker without a process: starting one takes five seconds, and tests of evaluations need dozens."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from sdcompress.errors import EvaluationError
from sdcompress.evaluation.worker.loop import new_worker
from sdcompress.evaluation.worker.requests import parse_request


class InProcess:
    """Answers in this process what a worker would; `left` drawings later it says that it was killed."""

    left = 10_000
    asked: ClassVar[Counter[str]] = Counter()
    started: ClassVar[Counter[str]] = Counter()  # log's name -> processes

    def __init__(self, subject: str, log: Path, **_: Any):
        self.subject, self._answer_to = subject, new_worker()
        self._answers: list[dict[str, Any]] = []
        InProcess.started[log.stem] += 1

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, request: Any, answer: Any) -> Any:
        self.send(request.model_dump(mode="json"))
        return answer.model_validate(self.receive())

    def send(self, values: Mapping[str, Any]) -> None:
        request = parse_request(json.loads(json.dumps(values)))
        measured = not getattr(request, "warm_up", False)
        if request.do == "draw" and measured:
            if not InProcess.left:
                raise EvaluationError(f"{self.subject}: its process was killed")
            InProcess.left -= 1
        InProcess.asked[request.do] += measured
        self._answers.append(json.loads(json.dumps(self._answer_to(request).to_json(), allow_nan=False)))

    def receive(self) -> dict[str, Any]:
        return self._answers.pop(0)


def evaluate(original: str | Path, compressed: str | Path, out: Path, **arguments: Any) -> dict[str, Any]:
    """Return the report of the public API's `evaluate`, as report.json has it."""
    from sdcompress import api

    return api.evaluate(str(original), str(compressed), out, progress=None, **arguments).to_dict()
