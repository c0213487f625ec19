"""What each component alone computes differently, given what the original's component got (teacher forcing).

The original draws a few pictures while every input and output of its components is recorded; the compressed pipeline's
components then get the same inputs, and what they return is compared. So an error is counted where it is made, and none
is carried on from one denoising step to the next.
"""

from __future__ import annotations

from collections.abc import Sequence

from sdcompress.evaluation.samples import ComponentsRecord, Drawing
from sdcompress.evaluation.session import Session
from sdcompress.evaluation.settings import choose_some
from sdcompress.evaluation.worker.requests import Recorded, Replay, Replayed, SaveRecording

RECORDING = "recording.pt"  # in the folder of the evaluation while it runs
SUBJECT = "components"


def pictures_to_record(session: Session, drawings: Sequence[Drawing]) -> int:
    """Return during how many pictures the original's components are to be recorded; 0 if the log has the metrics."""
    count = min(session.settings.component_metrics_count, len(drawings))
    logged = any(record.pictures == count for record in session.log.of(ComponentsRecord))
    return 0 if logged or not session.settings.component_metrics else count


def compare_components(session: Session, drawings: Sequence[Drawing]) -> None:
    """Log the components' metrics, unless the log has them for as many pictures.

    Args:
        session: the evaluation. The noise floor's pictures may have been recorded already.
        drawings: the pairs that were drawn; some of them are drawn again to be recorded.
    """
    count = pictures_to_record(session, drawings)
    if not count:
        return
    file = session.out / RECORDING
    again = choose_some(drawings, max(0, count - session.recorded))
    session.expect("drawing", SUBJECT, len(again))
    original, compressed = session.pipelines("original", "compressed")
    try:
        for drawing in again:
            session.draw(original, [drawing], None, record=True)
            session.advance("drawing", SUBJECT)
        recorded = original.ask(SaveRecording(file=str(file)), Recorded)
        replayed = compressed.ask(Replay(file=str(file)), Replayed)
    finally:
        file.unlink(missing_ok=True)
    macs = {"original": recorded.macs, "compressed": replayed.macs}
    session.log.append(ComponentsRecord(pictures=count, macs=macs, component_metrics=replayed.figures))
