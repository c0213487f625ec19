"""A contest from beginning to end: contenders are made, measured alone, compared with the reference, and raced."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.catalog import BASELINE, REFERENCE, Contender, with_needs
from benchmarks.contenders.job import Job
from benchmarks.contenders.make import make_contender
from benchmarks.contenders.race import Entrant, form_groups, run_alone, run_race
from benchmarks.contenders.summary import output_error
from sdcompress.errors import SdcompressError


def make_all(
    contenders: Sequence[Contender],
    jobs: Mapping[str, Job],
    pythons: Mapping[str, str],
    limit_bytes: int,
    remake: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """How making each contender, and all that these are made from, went; `failed` says what is missing."""
    made: dict[str, dict[str, Any]] = {}
    for one in with_needs(contenders):
        missing = [name for name in one.needs if made[name]["failed"] is not None]
        if one.family not in pythons:
            problem = "its environment could not be made"
        elif missing:
            problem = f"{missing[0]}, which it is made from, failed"
        else:
            made[one.name] = make_contender(
                one, jobs[one.name], pythons[one.family], limit_bytes, remake=one.name in remake
            )
            if one.name == BASELINE and made[one.name]["failed"] is not None:
                raise SdcompressError(f"{BASELINE}, with which everything is compared: {made[one.name]['failed']}")
            continue
        made[one.name] = {"seconds": 0.0, "peak_bytes": None, "failed": problem, "details": {}}
    return made


def measure(
    contenders: Sequence[Contender],
    jobs: Mapping[str, Job],
    entrants: Mapping[str, Entrant],
    made: Mapping[str, Mapping[str, Any]],
    budget_bytes: int,
    rounds: int,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Each contender's figures alone and in turns, and the race's groups."""
    raced: dict[str, dict[str, Any]] = {}
    for one in contenders:
        facts = {"label": one.label, "family": one.family, "needs": list(one.needs)}
        if made[one.name]["failed"] is None:
            # A compiler's seconds are to be measured, not read from an earlier run's cache.
            shutil.rmtree(jobs[one.name].part() / "inductor", ignore_errors=True)
            raced[one.name] = {**facts, **run_alone(entrants[one.name], output_of(jobs[one.name]))}
        else:
            raced[one.name] = {**facts, "failed": f"not made: {made[one.name]['failed']}"}
    ran = {name: entrants[name] for name, one in raced.items() if one["failed"] is None}
    for name in (BASELINE, REFERENCE):
        if name not in ran:
            raise SdcompressError(f"{name} must run, everything is compared with it; {raced[name]['failed']}")
    reference = np.load(output_of(jobs[REFERENCE]))
    for name in ran:
        raced[name]["error"] = output_error(reference, np.load(output_of(jobs[name])))
    groups = form_groups({name: raced[name]["peak_bytes"] for name in ran}, BASELINE, budget_bytes)
    race = run_race(ran, groups, rounds)
    if BASELINE in race["failed"]:
        raise SdcompressError(
            f"{BASELINE} must run to the end, everything is compared with it; {race['failed'][BASELINE]}"
        )
    for name in ran:
        raced[name]["samples"] = race["samples"][name]
        raced[name]["failed"] = race["failed"].get(name)
    return raced, race


def output_of(job: Job) -> Path:
    """Where a contender's output for the test inputs is written."""
    return Path(job.work) / "outputs" / job.component / f"{job.contender}.npy"
