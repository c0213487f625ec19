"""A worker process: reads requests from stdin and writes answers to stdout, one JSON line each.

Run as `python -m sdcompress.evaluation.worker.loop`. A process of its own for each pipeline makes its peak memory its
own. What libraries print goes to stderr, which the parent writes to a log.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from sdcompress.errors import SdcompressError
from sdcompress.evaluation.samples import Entry
from sdcompress.evaluation.worker.picture_scoring import PictureScorer
from sdcompress.evaluation.worker.pipeline import PipelineWorker
from sdcompress.evaluation.worker.requests import AnyRequest, parse_request


def new_worker() -> Callable[[AnyRequest], Entry]:
    """Return the function that answers the requests to one process."""
    pipeline, scorer = PipelineWorker(), PictureScorer()
    actions: dict[str, Callable[[Any], Entry]] = {
        "prepare": pipeline.prepare,
        "open": pipeline.open,
        "draw": pipeline.draw,
        "save_recording": pipeline.save_recording,
        "replay": pipeline.replay,
        "open_metrics": scorer.open,
        "score": scorer.score,
        "score_sets": scorer.score_sets,
    }
    return lambda request: actions[request.do](request)


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer each line of `requests` on `answers` until they end. The log gets an unforeseen error's traceback."""
    answer_to = new_worker()
    for line in requests:
        try:
            answer = answer_to(parse_request(json.loads(line))).to_json()
        except SdcompressError as error:
            answer = {"problem": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer, allow_nan=False), file=answers, flush=True)


def main() -> None:
    """Serve stdin and stdout."""
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # from here on a library's print goes to the log
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
