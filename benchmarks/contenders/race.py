"""The parent's side: contenders in worker processes, one running at a time, in turns, so that drift hits all alike.

Not all fit in memory at once. Each is first measured alone, which gives its peak; then groups are formed that fit a
budget, the baseline in every one, and a group takes turns: A B C A B C. So a ratio to the baseline always comes from
turns next to each other. Workers that wait are suspended: no idle thread of a runtime spins meanwhile.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sdcompress.errors import SdcompressError
from sdcompress.evaluation.worker.process import WorkerProcess

POLL_S = 0.001


@dataclass(frozen=True)
class Entrant:
    """A contender ready to be started: its command, what it is asked to load, its log, its threads."""

    name: str
    command: tuple[str, ...]
    load: Mapping[str, Any]
    log: Path
    threads: int

    def start(self) -> WorkerProcess:
        """Its process; use as a context manager."""
        return WorkerProcess(
            self.name, self.log, command=self.command, environment={"OMP_NUM_THREADS": str(self.threads)}
        )


def ask(worker: WorkerProcess, **request: Any) -> dict[str, Any]:
    """Return the worker's answer."""
    worker.send(request)
    return worker.receive()


def run_alone(entrant: Entrant, output: Path) -> dict[str, Any]:
    """What loading, warming up and one turn say with nothing else in memory, its output written; or `failed`."""
    print(f"alone: {entrant.name}", file=sys.stderr, flush=True)
    try:
        with entrant.start() as worker:
            loaded = ask(worker, do="load", **entrant.load)
            warm = ask(worker, do="warm_up")
            ask(worker, do="output", to=str(output))
            turn = ask(worker, do="step")
    except SdcompressError as error:
        return {"failed": str(error)}
    return {
        "failed": None,
        "load_s": loaded["load_s"],
        "warm_up_s": warm["seconds"],
        "size_bytes": loaded["size_bytes"],
        "details": loaded["details"],
        "peak_bytes": turn["peak_bytes"],
        "turn": turn,
    }


def form_groups(peaks: Mapping[str, int], baseline: str, budget_bytes: int) -> list[list[str]]:
    """The contenders in groups, the baseline first in each, whose peaks together stay within the budget.

    First fit in the order given. One too large even beside the baseline alone gets a group of these two.
    """
    groups: list[list[str]] = []
    for name in peaks:
        if name == baseline:
            continue
        for group in groups:
            if sum(peaks[one] for one in (*group, name)) <= budget_bytes:
                group.append(name)
                break
        else:
            groups.append([baseline, name])
    return groups or [[baseline]]


def order_turns(group: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Round and contender of each turn: A B C A B C ..."""
    for number in range(rounds):
        for name in group:
            yield number, name


def run_race(entrants: Mapping[str, Entrant], groups: Sequence[Sequence[str]], rounds: int) -> dict[str, Any]:
    """Each contender's turns ({group, round, seconds, ...}), and who failed and why.

    All of a group load before its first turn. One that dies has no further turns; the others go on.
    """
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in entrants}
    failed: dict[str, str] = {}
    for number, group in enumerate(groups):
        print(f"group {number + 1} of {len(groups)}: {' '.join(group)}", file=sys.stderr, flush=True)
        with ExitStack() as stack:
            workers: dict[str, tuple[WorkerProcess, psutil.Process]] = {}
            for name in group:
                try:
                    worker = stack.enter_context(entrants[name].start())
                    pid = ask(worker, do="load", **entrants[name].load)["pid"]
                    ask(worker, do="warm_up")
                    workers[name] = worker, psutil.Process(pid)
                    suspend(workers[name][1])
                except (SdcompressError, psutil.NoSuchProcess) as error:
                    failed[name] = str(error)
            for turn, name in order_turns([name for name in group if name in workers], rounds):
                if name in failed:
                    continue
                worker, process = workers[name]
                try:
                    resume(process)
                    answer = ask(worker, do="step")
                    suspend(process)
                except (SdcompressError, psutil.NoSuchProcess) as error:
                    failed[name] = str(error)
                    continue
                samples[name].append({"group": number, "round": turn, **answer})
    return {"groups": [list(group) for group in groups], "samples": samples, "failed": failed}


def suspend(process: psutil.Process) -> None:
    """Stops a process and its children until `resume`; returns once they stand still."""
    family = (process, *process.children(recursive=True))
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # a child that has just ended
            one.suspend()
    while not all(stands_still(one) for one in family):
        time.sleep(POLL_S)


def resume(process: psutil.Process) -> None:
    """Lets a suspended process and its children go on."""
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.resume()


def stands_still(process: psutil.Process) -> bool:
    """Whether a process is stopped or has ended: the system stops it a moment after it is told to."""
    try:
        return bool(process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
    except psutil.NoSuchProcess:
        return True
