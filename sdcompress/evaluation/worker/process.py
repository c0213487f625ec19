"""The parent's side of a worker: starts it, asks it, and says clearly how it died."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdcompress.errors import EvaluationError

LOG_TAIL_LINES = 15
COMMAND = (sys.executable, "-m", "sdcompress.evaluation.worker.loop")


class WorkerProcess:
    """A running worker. Use as a context manager: leaving it ends the process, whatever happened."""

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

    def ask(self, **request: Any) -> dict[str, Any]:
        """The worker's answer; raises EvaluationError with the end of its log when it fails or dies."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):
            raise EvaluationError(self._obituary())
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

    def _obituary(self) -> str:
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
