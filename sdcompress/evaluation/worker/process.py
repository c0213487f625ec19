"""The parent's side of a worker process: starts it, asks it, and says how it died."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sdcompress.errors import EvaluationError
from sdcompress.evaluation.samples import Entry
from sdcompress.evaluation.worker.requests import Request

LOG_TAIL_LINES = 15
COMMAND = (sys.executable, "-m", "sdcompress.evaluation.worker.loop")

Answer = TypeVar("Answer", bound=Entry)


class WorkerProcess:
    """A running worker. Use it as a context manager: leaving it ends the process, whatever happened.

    Args:
        subject: what the process works on, for error messages.
        log: the file that its stderr is appended to.
        environment: variables that are added to this process's own.
        command: what to run; a module that reads requests and writes answers, one JSON line each.
    """

    def __init__(
        self, subject: str, log: Path, *, environment: Mapping[str, str] | None = None, command: Sequence[str] = COMMAND
    ):
        self.subject = subject
        self.log = log
        package_parent = str(Path(__file__).parents[3])
        search = os.pathsep.join(filter(None, (package_parent, os.environ.get("PYTHONPATH"))))
        # Offline: an evaluation that quietly downloads measures the network.
        variables = {**os.environ, "PYTHONPATH": search, "HF_HUB_OFFLINE": "1", **(environment or {})}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=variables,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends its children
            )

    def ask(self, request: Request, answer: type[Answer]) -> Answer:
        """Return the worker's answer, which is of the class `answer`.

        Raises:
            EvaluationError: the worker failed or died; the message has the end of its log.
        """
        self.send(request.model_dump(mode="json"))
        return answer.model_validate(self.receive())

    def send(self, request: Mapping[str, Any]) -> None:
        """Send a request without waiting for its answer, which `receive` returns."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `receive` says why
            print(json.dumps(request), file=self._process.stdin, flush=True)

    def receive(self) -> dict[str, Any]:
        """Return the answer to the oldest request that has none yet. Raises EvaluationError as `ask` does."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise EvaluationError(self._death())
        answer: dict[str, Any] = json.loads(line)
        if "problem" in answer:
            raise EvaluationError(f"{self.subject}: {answer['problem']}")
        if "error" in answer:
            raise EvaluationError(f"{self.subject}: {answer['error']}\n{self._tail()}")
        return answer

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._process.wait()

    def _death(self) -> str:
        code = self._process.wait()
        if code == -9:
            how = (
                "was killed by signal 9 (SIGKILL), most likely because the system ran out of memory; close other "
                "programs, use --dtype float16 or bfloat16, or a machine with more memory"
            )
        elif code < 0:
            how = f"died of signal {-code} ({signal.Signals(-code).name})"
        else:
            how = f"ended early with return code {code}"
        return f"{self.subject}: its process {how}\n{self._tail()}"

    def _tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n".join(f"  | {line}" for line in lines[-LOG_TAIL_LINES:])
        return f"the end of {self.log}:\n{tail}" if tail else f"{self.log} is empty"
