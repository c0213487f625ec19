"""Scoring the drawn pictures, each beside the original's of the same drawing, and whole sets of them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Literal

from sdcompress.evaluation.noise_floor import SEED_VARIANT
from sdcompress.evaluation.samples import (
    Drawing,
    PairScores,
    PictureRecord,
    ScoreRecord,
    SetScoreRecord,
    SetScores,
    VariantRecord,
    VariantScoreRecord,
)
from sdcompress.evaluation.session import Session, picture_path
from sdcompress.evaluation.worker.requests import Score, ScoreSets

SUBJECT = "pictures"


def score_pictures(session: Session, drawings: Sequence[Drawing], variants: Sequence[str]) -> None:
    """Score what has no scores yet of the compressed pipeline's pictures and those of variants, and log it."""
    scorer = session.scorer_name
    done = {("compressed", record.index) for record in session.log.of(ScoreRecord) if record.scorer == scorer}
    done |= {(record.variant, record.index) for record in session.log.of(VariantScoreRecord) if record.scorer == scorer}
    drawn = {(record.variant, record.index) for record in session.log.of(VariantRecord)}
    drawn |= {("compressed", drawing.index) for drawing in drawings}
    todo = [
        (label, drawing)
        for label in ("compressed", *variants)
        for drawing in drawings
        if (label, drawing.index) in drawn - done
    ]
    if not todo:
        return
    session.expect("scoring", SUBJECT, len(todo))
    worker = session.scoring()
    for label, drawing in todo:
        index = drawing.index
        request = Score(
            original=_file(session, "original", index), compressed=_file(session, label, index), prompt=drawing.prompt
        )
        scores = worker.ask(request, PairScores).to_json()
        if label == "compressed":
            session.log.append(ScoreRecord(index=index, scorer=scorer, **scores))
        else:
            session.log.append(VariantScoreRecord(variant=label, index=index, scorer=scorer, **scores))
        session.advance("scoring", SUBJECT)


def score_sets(session: Session, drawings: Sequence[Drawing]) -> None:
    """Log the distances between sets of pictures: all of them, and those that the reseeded original drew too."""
    reseeded = {record.index for record in session.log.of(VariantRecord) if record.variant == SEED_VARIANT}
    everything = [drawing.index for drawing in drawings]
    few = [index for index in everything if index in reseeded]
    wanted: list[tuple[str, Literal["all", "floor"], list[int]]] = [
        ("compressed", "all", everything), ("compressed", "floor", few), (SEED_VARIANT, "floor", few)
    ]  # fmt: skip
    scorer = session.scorer_name
    done = {(r.label, r.over, r.count) for r in session.log.of(SetScoreRecord) if r.scorer == scorer}
    for label, over, indices in wanted:
        if len(indices) < 2 or (label, over, len(indices)) in done:
            continue
        request = ScoreSets(
            original=[_file(session, "original", index) for index in indices],
            compressed=[_file(session, label, index) for index in indices],
        )
        scores = session.scoring().ask(request, SetScores).to_json()
        session.log.append(SetScoreRecord(label=label, over=over, scorer=scorer, count=len(indices), **scores))


def _file(session: Session, label: str, index: int) -> str:
    return str(session.out / picture_path(label, index))


def drifts_by_prompt(session: Session, drawings: Sequence[Drawing], label: str) -> list[float]:
    """Return by how much a label's CLIP scores are above the original's, averaged over the seeds of each prompt.

    Pictures that a safety checker blocked are left out.
    """
    log, scorer = session.log, session.scorer_name
    blocked = {
        record.index for record in log.of(PictureRecord) if record.blocked and record.side in ("original", label)
    }
    blocked |= {record.index for record in log.of(VariantRecord) if record.blocked and record.variant == label}
    records: Sequence[ScoreRecord | VariantScoreRecord] = (
        log.of(ScoreRecord)
        if label == "compressed"
        else [record for record in log.of(VariantScoreRecord) if record.variant == label]
    )
    scores = {record.index: record.clip_score for record in records if record.scorer == scorer}
    drifts: dict[str, list[float]] = {}
    for drawing in drawings:
        score = scores.get(drawing.index, {})
        original, other = score.get("original"), score.get("compressed")
        if original is not None and other is not None and drawing.index not in blocked:
            drifts.setdefault(drawing.prompt, []).append(other - original)
    return [fmean(each) for each in drifts.values()]
