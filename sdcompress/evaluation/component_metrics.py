"""What each component alone computes differently, given what the original's component got (teacher forcing).

The original draws a few pictures while every input and output of its components is recorded; a fresh process then
gives the same inputs to the compressed pipeline's components and compares what comes out. So an error is counted where
it is made, and none is carried on from one denoising step to the next.
"""

from __future__ import annotations

from sdcompress.evaluation.drawing import Session
from sdcompress.evaluation.settings import choose_some

RECORDING = "recording.pt"  # in the folder of the evaluation while it runs


def compare_components(session: Session) -> None:
    """Logs the components' figures, unless the log has them for as many pictures."""
    chosen = choose_some(list(session.drawings), session.settings.component_metrics_count)
    if any(record["pictures"] == len(chosen) for record in session.log.of_kind("components")):
        return
    task = session.progress.add_task("components", total=len(chosen) + 1)
    file = session.out / RECORDING
    try:
        with session.worker(f"components of the original ({session.paths['original']})", "components") as worker:
            session.open_side(worker, "original")
            for drawing in chosen:
                worker.ask(
                    do="record",
                    prompt=drawing["prompt"],
                    seed=drawing["seed"],
                    options=dict(session.options),
                    inputs=drawing.get("inputs"),
                )
                session.progress.advance(task)
            recorded = worker.ask(do="save_recording", file=str(file))
        with session.worker(f"components of the compressed ({session.paths['compressed']})", "components") as worker:
            session.open_side(worker, "compressed")
            replayed = worker.ask(do="replay", file=str(file))
            session.progress.advance(task)
    finally:
        file.unlink(missing_ok=True)
    macs = {"original": recorded["macs"], "compressed": replayed["macs"]}
    session.log.append(
        {"kind": "components", "pictures": len(chosen), "macs": macs, "component_metrics": replayed["figures"]}
    )
