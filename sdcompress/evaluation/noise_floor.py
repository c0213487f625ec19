"""The noise floor: the original beside itself, drawn again in ways that a user would not call another pipeline.

- `seed`: another seed for each prompt. How far scores and pictures move when nothing but chance differs.
- `bfloat16`: computed in bfloat16. What merely rounding the arithmetic does.
- `batch`: two pictures at a time. Other kernels, other order of sums: what any change of machine does.
"""

from __future__ import annotations

from typing import Any

from sdcompress.evaluation.drawing import Session
from sdcompress.evaluation.settings import choose_some

BATCH_SIZE = 2


def floor_variant(source: str) -> str:
    """The label of a source's pictures in the log and in `images/`."""
    return f"floor-{source}"


def why_not(source: str, session: Session) -> str | None:
    """Why a source of noise cannot be measured here; None when it can."""
    onnx = session.onnx["original"]
    if source == "bfloat16" and onnx:
        return "the original is an ONNX folder, whose precision is in its files"
    if source == "bfloat16" and session.settings.dtype == "bfloat16":
        return "the pipelines run in bfloat16 already"
    if source == "batch" and onnx:
        return "the original is an ONNX folder, whose graphs may take one picture at a time only"
    return None


def draw_noise_floor(session: Session) -> dict[str, str]:
    """Draws what is missing of the floor's pictures; answers with source -> why, for what cannot be measured."""
    reasons: dict[str, str | None] = {source: why_not(source, session) for source in session.settings.noise_floor}
    chosen = choose_some(list(session.drawings), session.settings.noise_floor_count)
    todo = {
        source: session.undrawn(floor_variant(source), chosen) for source, reason in reasons.items() if reason is None
    }
    # The original as it is draws for two sources: one process serves both.
    for dtype, sources in ((None, ("seed", "batch")), ("bfloat16", ("bfloat16",))):
        wanted = {source: todo[source] for source in sources if todo.get(source)}
        if wanted:
            _draw(session, wanted, chosen, dtype)
    return {source: reason for source, reason in reasons.items() if reason is not None}


def _draw(
    session: Session, wanted: dict[str, list[dict[str, Any]]], chosen: list[dict[str, Any]], dtype: str | None
) -> None:
    opening = {**session.opening["original"], **({} if dtype is None else {"dtype": dtype})}
    task = session.progress.add_task(f"noise floor: {', '.join(wanted)}", total=sum(map(len, wanted.values())))
    path = session.paths["original"]
    with session.worker(f"noise floor of the original ({path})", "noise-floor") as worker:
        worker.ask(do="open", path=str(path), **opening)
        session.warm_up(worker)
        for source, drawings in wanted.items():
            if source == "batch":
                _draw_batches(session, worker, drawings, chosen, task)
                continue
            for drawing in drawings:
                # The next block of seeds: none of them belongs to a picture of the comparison.
                moved = len(session.drawings) if source == "seed" else 0
                redrawn = {**drawing, "seed": drawing["seed"] + moved}
                _keep(session, source, redrawn, session.draw(worker, redrawn, _file(session, source, drawing)))
                session.progress.advance(task)


def _draw_batches(
    session: Session, worker: Any, drawings: list[dict[str, Any]], chosen: list[dict[str, Any]], task: Any
) -> None:
    for drawing in drawings:
        # Each picture is drawn in company of its neighbour's, so that one of them can be drawn again alone.
        place = chosen.index(drawing)
        company = [chosen[(place + step) % len(chosen)] for step in range(BATCH_SIZE)]
        answer = worker.ask(
            do="draw_batch",
            prompts=[each["prompt"] for each in company],
            seeds=[each["seed"] for each in company],
            options=dict(session.options),
            picture=str(_file(session, "batch", drawing)),
            inputs=[each.get("inputs") for each in company],
        )
        _keep(session, "batch", drawing, answer)
        session.progress.advance(task)


def _file(session: Session, source: str, drawing: dict[str, Any]) -> Any:
    return session.picture_file(floor_variant(source), drawing["index"])


def _keep(session: Session, source: str, drawing: dict[str, Any], answer: dict[str, Any]) -> None:
    record = {"kind": "variant", "variant": floor_variant(source), "index": drawing["index"], "seed": drawing["seed"]}
    session.log.append({**record, **answer})
