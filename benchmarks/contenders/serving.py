"""The child's side of a contender's process: JSON requests on stdin, one JSON answer a line on stdout."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdcompress.errors import SdcompressError

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def serve(actions: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Answers each line of stdin with what the action it names returns, until stdin ends."""
    faulthandler.enable()
    die_first()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print lands in the log, not among the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = actions[request.pop("do")](**request)
        except SdcompressError as error:
            answer = {"problem": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def die_first() -> None:
    """Has Linux end this process before its parent when memory runs out, and with its parent when that ends."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):  # a container may forbid it
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    # A suspended worker would not notice that its requests have ended, and keep its gigabytes.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
