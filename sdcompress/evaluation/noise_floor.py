"""The noise floor: how far the original's pictures are from themselves when it draws them again.

Each source of noise draws again in a way that a user would not call another pipeline:

- `seed`: another seed for each prompt. How far scores and pictures move when nothing but chance differs.
- `bfloat16`: computed in bfloat16, or rounded to it (`worker/bfloat16.py`). What rounding the arithmetic does.
- `batch`: two pictures at a time, which means other kernels and another order of sums, as another machine does.
"""

from __future__ import annotations

from collections.abc import Sequence

from sdcompress.evaluation.samples import Drawing, VariantRecord
from sdcompress.evaluation.session import Session
from sdcompress.evaluation.settings import NoiseSource, choose_some
from sdcompress.evaluation.worker.process import WorkerProcess

BATCH_SIZE = 2
SEED_VARIANT = "floor-seed"


def floor_variant(source: str) -> str:
    """Return the label of a source's pictures in the log and in `images/`."""
    return f"floor-{source}"


def reasons_not_measured(session: Session) -> dict[str, str]:
    """Return source of noise -> why it cannot be measured here, for those that were asked for."""
    reasons: dict[str, str] = {}
    for source in session.settings.noise_floor:
        if session.of_graphs["original"] and source == "bfloat16":
            reasons[source] = "the original is an ONNX folder, whose precision is in its files"
        elif session.of_graphs["original"] and source == "batch":
            reasons[source] = "the original is an ONNX folder, whose graphs may take one picture at a time only"
        elif source == "bfloat16" and session.settings.dtype == "bfloat16":
            reasons[source] = "the pipelines run in bfloat16 already"
    return reasons


def draw_floor(session: Session, drawings: Sequence[Drawing], *sources: NoiseSource) -> None:
    """Draw what is missing of the floor's pictures, and log it.

    Args:
        session: the evaluation.
        drawings: the pairs that were drawn; some of them are drawn again.
        sources: what to draw, as far as it was asked for and can be measured. After `bfloat16` the original's process
            holds the pipeline in bfloat16.
    """
    chosen = choose_some(drawings, session.settings.noise_floor_count)
    for source in sources:
        todo = session.undrawn(floor_variant(source), chosen)
        if source not in session.settings.noise_floor or source in reasons_not_measured(session) or not todo:
            continue
        subject = f"noise floor: {source}"
        session.expect("drawing", subject, len(todo))
        if source == "bfloat16":
            worker = session.reopen_original("bfloat16")
        else:
            (worker,) = session.pipelines("original")
        for drawing in todo:
            _draw(session, worker, source, drawing, chosen)
            session.advance("drawing", subject)


def _draw(
    session: Session, worker: WorkerProcess, source: NoiseSource, drawing: Drawing, chosen: list[Drawing]
) -> None:
    batch = [drawing]
    if source == "seed":
        # The next block of seeds: none of them belongs to a picture of the comparison.
        batch = [drawing.model_copy(update={"seed": drawing.seed + len(session.drawings)})]
    elif source == "batch":
        # Each picture is drawn together with its neighbour's, so that one of them can be drawn again alone.
        place = chosen.index(drawing)
        batch = [chosen[(place + step) % len(chosen)] for step in range(BATCH_SIZE)]
    variant = floor_variant(source)
    # Nobody reads these pictures' times, so they serve the component metrics too.
    record = source == "seed" and session.recorded < session.to_record
    drawn = session.draw(worker, batch, session.picture_file(variant, drawing.index), record=record)
    values = {"variant": variant, "index": drawing.index, "seed": batch[0].seed}
    session.log.append(VariantRecord(**values, **drawn.to_json()))
