"""Drawing the pairs: each prompt and seed with both pipelines, their pictures in turn."""

from __future__ import annotations

from collections.abc import Sequence

from sdcompress.evaluation.samples import SIDES, Drawing, PictureRecord, Side
from sdcompress.evaluation.session import Session

SUBJECT = "both pipelines"


def draw_pairs(session: Session, drawings: Sequence[Drawing]) -> None:
    """Draw what is missing of the pairs, and log it.

    The order is original, compressed, compressed, original, ..., so that a machine that slows down slows both alike.

    Args:
        session: the evaluation.
        drawings: the pairs in the order in which the whole evaluation draws them, from its first.
    """
    todo = _missing(session, drawings)
    if not todo:
        return
    session.expect("drawing", SUBJECT, len(todo))
    workers = dict(zip(SIDES, session.pipelines(*SIDES), strict=True))
    for drawing, repeat, side in todo:
        index = drawing.index
        drawn = session.draw(workers[side], [drawing], None if repeat else session.picture_file(side, index))
        session.log.append(PictureRecord(side=side, index=index, repeat=repeat, **drawn.to_json()))
        session.advance("drawing", SUBJECT)


def _missing(session: Session, drawings: Sequence[Drawing]) -> list[tuple[Drawing, int, Side]]:
    done = {(record.index, record.repeat, record.side) for record in session.log.of(PictureRecord)}
    todo: list[tuple[Drawing, int, Side]] = []
    for place, drawing in enumerate(drawings):
        for repeat in range(session.settings.latency_repeats):
            for side in SIDES if (place + repeat) % 2 == 0 else reversed(SIDES):
                there = repeat > 0 or session.has_picture(side, drawing.index)
                if (drawing.index, repeat, side) not in done or not there:
                    todo.append((drawing, repeat, side))
    return todo
