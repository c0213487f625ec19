"""Two pipelines side by side: a real run on a tiny random pipeline, and the ways a run can stop."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from in_process import evaluate
from PIL import Image

from sdcompress.calibration.prompt_files import read_prompts
from sdcompress.calibration.prompts import GENERAL, PromptSet, default_prompts, is_tiny_sd
from sdcompress.errors import EvaluationError
from sdcompress.evaluation import session
from sdcompress.evaluation.metrics.scorer import TINY_SD_SCORER
from sdcompress.evaluation.samples import Drawing, DrawnPicture
from sdcompress.evaluation.settings import EvaluationSettings, list_drawings
from sdcompress.evaluation.worker.pipeline import PipelineWorker
from sdcompress.evaluation.worker.process import WorkerProcess
from sdcompress.evaluation.worker.requests import Draw, Nothing, Open, Prepare, Score
from sdcompress.sources.opening import open_source

# One thread: two processes with two threads each wait for one another on a busy machine.
QUICK: dict[str, Any] = {
    "prompt_count": 2,
    "num_inference_steps": 2,
    "threads": 1,
    "height": 32,
    "width": 32,
    "clip": str(TINY_SD_SCORER),
    "noise_floor": (),  # test_evaluate_more.py has these
    "component_metrics": False,
}


def test_a_pipeline_against_itself(nano_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = evaluate(nano_folder, nano_folder, out, settings=EvaluationSettings(**QUICK, latency_repeats=2))

    text = (out / "report.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=lambda token: pytest.fail(f"{token} is no JSON")) == report
    assert report["similarity"]["identical"] == report["similarity"]["pairs"] == 2
    assert report["similarity"]["identical_latents"] is True
    assert report["similarity"]["psnr_db"]["min"] is None  # infinite
    assert report["change"]["clip_score"]["difference"] == 0
    assert report["change"]["clip_score"]["interval_95"] == [0.0, 0.0]
    assert report["change"]["parameters"] == {"difference": 0, "ratio": 1.0}
    for side in ("original", "compressed"):
        figures = report[side]
        assert figures["latency_s"] > 0 and figures["load_s"] > 0
        assert figures["peak_memory_bytes"] > figures["peak_memory_over_imports_bytes"] > 0
        # float32, and a few integer buffers besides
        assert 0 <= figures["resident_weights_bytes"] - 4 * figures["parameters"] < 1000
        spent = [figures["components"][name]["latency_s"] for name in ("text_encoder", "unet", "vae")]
        assert 0 < sum(spent) <= figures["latency_s_quantiles"]["p95"] * 1.5
        assert figures["not_finite"] == figures["blocked"] == 0
        for index in range(2):
            picture = Image.open(out / "images" / side / f"{index:04d}.png")
            assert picture.size == (32, 32)
        assert (out / "logs" / f"{side}.log").exists()
    assert all(len(sample["original"]["latency_s"]) == 2 for sample in report["samples"])
    assert len({sample["original"]["latents_sha256"] for sample in report["samples"]}) == 2
    first, second = (np.asarray(Image.open(out / "images" / "original" / f"000{i}.png")) for i in range(2))
    assert (first != second).any()
    Image.open(out / "images.png").verify()
    assert (out / "report.md").is_file()


def test_the_same_noise_in_another_precision(nano_folder: Path) -> None:
    hashes = []
    worker = PipelineWorker()
    drawing = Drawing(index=0, prompt="a cat", seed=5)
    options = {"num_inference_steps": 1, "height": 32, "width": 32}
    for dtype in ("float32", "bfloat16"):
        worker.open(Open(path=str(nano_folder), device="cpu", dtype=dtype, threads=1))
        drawn = worker.draw(Draw(drawings=[drawing], options=options, picture=None))
        assert drawn.component_latency_s.keys() == {"text_encoder", "unet", "vae"}
        hashes.append(drawn.latents_sha256)
    assert hashes[0] == hashes[1] is not None


OPENED = {
    "load_s": 1.0, "resident_after_imports_bytes": 1, "peak_memory_bytes": 2, "resident_weights_bytes": {},
    "device_name": None, "dtype": "float32", "threads": 1, "defaults": {},
}  # fmt: skip
DRAWN = {
    "latency_s": 1.0, "component_latency_s": {"unet": 0.5}, "latents_sha256": "0", "blocked": False, "height": 8,
    "width": 8, "not_finite": False, "flat": False, "peak_memory_bytes": 3, "peak_device_memory_bytes": None,
}  # fmt: skip


class FakeWorker:
    """Answers as a worker does, without a pipeline; dies after `left` requests to draw."""

    left = 1_000
    drawn: ClassVar[list[tuple[str, int]]] = []  # (side or variant, seed) in the order asked for
    devices: ClassVar[dict[str, str]] = {}
    drift = staticmethod(lambda index: 0.0)  # of the CLIP score

    def __init__(self, subject: str, log: Path, **_: Any):
        self.subject = subject.split()[0]

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send(self, values: dict[str, Any]) -> None:
        assert values["do"] == "prepare"

    def receive(self) -> dict[str, Any]:
        return {}

    def ask(self, request: Any, answer: Any) -> Any:
        return answer.model_validate(self._answer(request))

    def _answer(self, request: Any) -> dict[str, Any]:
        if isinstance(request, Open):
            return {**OPENED, "device": self.devices.get(self.subject, "cpu")}
        if isinstance(request, Score):
            index, variant = int(Path(request.compressed).stem), Path(request.compressed).parent.name
            drift = self.drift(index) if variant == "compressed" else 0.5 * (-1) ** index
            clip = {"original": 1.0, "compressed": 1.0 + drift}
            return {"clip_score": clip, "identical": True, "psnr_db": None, "ssim": 1.0}
        if isinstance(request, Draw) and not request.warm_up:
            if not FakeWorker.left:
                raise EvaluationError(f"{self.subject}: its process was killed")
            FakeWorker.left -= 1
            FakeWorker.drawn.append((Path(request.picture).parent.name, request.drawings[0].seed))
            Image.new("RGB", (8, 8)).save(request.picture)
        return DRAWN if isinstance(request, Draw) else {}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    monkeypatch.setattr(session, "WorkerProcess", FakeWorker)
    for name, value in (("left", 1_000), ("drawn", []), ("devices", {})):
        monkeypatch.setattr(FakeWorker, name, value)
    return FakeWorker


FOUR = EvaluationSettings(
    prompts=PromptSet("mine", ("a", "b", "c", "d"), 4), use_clip=False, noise_floor=(), component_metrics=False
)


def test_the_two_take_turns(fake: type[FakeWorker], tmp_path: Path) -> None:
    evaluate("tiny-sd", "tiny-sd", tmp_path, settings=FOUR)
    expected = ["original", "compressed", "compressed", "original"] * 2
    assert [side for side, _ in fake.drawn] == expected
    assert [seed for _, seed in fake.drawn] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_unlike_devices_are_not_compared(fake: type[FakeWorker], tmp_path: Path) -> None:
    fake.devices["original"] = "cuda"
    with pytest.raises(EvaluationError, match="the original runs on cuda, the compressed pipeline on cpu"):
        evaluate("tiny-sd", "tiny-sd", tmp_path, settings=FOUR)


MANY = EvaluationSettings(
    prompts=PromptSet("many", tuple(f"prompt {index}" for index in range(40)), 40),
    clip=str(TINY_SD_SCORER),
    noise_floor=("seed",),
    component_metrics=False,
)


@pytest.mark.parametrize(
    ("drift", "prompts", "reason"),
    [
        (lambda index: 0.01 * (-1) ** (index // 5), 8, "narrow enough"),
        (lambda index: -2 + 0.1 * (-1) ** (index // 5), 8, "further from 0"),
        (lambda index: 0.45 * (-1) ** (index // 5), 16, "narrow enough"),
        (lambda index: 9 * (-1) ** (index // 5), 40, "all prompts"),
    ],
)
def test_drawing_stops_when_the_interval_is_narrow_enough(
    drift: Any, prompts: int, reason: str, fake: type[FakeWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "drift", staticmethod(drift))
    report = evaluate("tiny-sd", "tiny-sd", tmp_path, settings=MANY)
    stopping = report["settings"]["stopping"]
    assert stopping["looks"] == [8, 16, 32, 40] and stopping["prompts"] == prompts and reason in stopping["reason"]
    assert len(report["samples"]) == report["settings"]["prompt_count"] == prompts
    indices = [sample["index"] for sample in report["samples"]]
    assert indices == [place * 40 // prompts for place in range(prompts)]  # spread over the prompt set
    # Both are drawn first as often, and nothing is drawn twice.
    turns = [side for side, _ in fake.drawn if side in ("original", "compressed")]
    assert turns == (["original", "compressed", "compressed", "original"] * prompts)[: 2 * prompts]
    assert len(set(fake.drawn)) == len(fake.drawn) == 2 * prompts + 8

    drawn = len(fake.drawn)
    assert evaluate("tiny-sd", "tiny-sd", tmp_path, settings=MANY) == report and len(fake.drawn) == drawn
    everything = MANY.model_copy(update={"prompt_count": 40})
    whole = evaluate("tiny-sd", "tiny-sd", tmp_path, settings=everything)
    assert len(whole["samples"]) == 40 and whole["settings"]["stopping"]["interval_level"] == 0.95
    assert len(set(fake.drawn)) == len(fake.drawn) == 2 * 40 + 8
    assert len(evaluate("tiny-sd", "tiny-sd", tmp_path, settings=MANY)["samples"]) == prompts


def test_resumes_where_it_stopped(fake: type[FakeWorker], tmp_path: Path) -> None:
    out = tmp_path / "out"
    fake.left = 3
    with pytest.raises(EvaluationError, match="killed"):
        evaluate("tiny-sd", "tiny-sd", out, settings=FOUR)
    finished = list(fake.drawn)
    with (out / "samples.jsonl").open("a") as stream:
        stream.write('{"kind": "picture", "side": "orig')  # killed while writing
    fake.left = 1_000
    report = evaluate("tiny-sd", "tiny-sd", out, settings=FOUR)
    again = fake.drawn[len(finished) :]
    assert len(finished) == 3 and len(again) == 5 and not set(finished) & set(again)
    assert len(report["samples"]) == 4
    assert len(report["processes"]["original"]) == 2

    drawn = len(fake.drawn)
    assert evaluate("tiny-sd", "tiny-sd", out, settings=FOUR) == report
    (out / "images" / "compressed" / "0002.png").unlink()
    evaluate("tiny-sd", "tiny-sd", out, settings=FOUR)
    assert fake.drawn[drawn:] == [("compressed", 2)]


def test_other_settings_do_not_mix(fake: type[FakeWorker], tmp_path: Path) -> None:
    evaluate("tiny-sd", "tiny-sd", tmp_path / "out", settings=FOUR)
    other = FOUR.model_copy(update={"seed": 9})
    with pytest.raises(EvaluationError, match=r"other prompts and seeds; use another --out, or --force"):
        evaluate("tiny-sd", "tiny-sd", tmp_path / "out", settings=other)
    report = evaluate("tiny-sd", "tiny-sd", tmp_path / "out", settings=other, force=True)
    assert [sample["seed"] for sample in report["samples"]] == [9, 10, 11, 12]


def test_a_folder_of_something_else_is_left_alone(fake: type[FakeWorker], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(EvaluationError, match="holds no evaluation"):
        evaluate("tiny-sd", "tiny-sd", tmp_path, settings=FOUR)
    evaluate("tiny-sd", "tiny-sd", tmp_path, settings=FOUR, force=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_the_artifact_may_lie_in_the_same_folder(fake: type[FakeWorker], nano_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(nano_folder, tmp_path / "artifact")
    report = evaluate("tiny-sd", str(tmp_path / "artifact"), tmp_path, settings=FOUR, command="sdcompress run x")
    assert report["command"] == "sdcompress run x"
    assert "    sdcompress run x" in (tmp_path / "report.md").read_text()


def _stand_in(log: Path, code: str) -> WorkerProcess:
    return WorkerProcess("compressed (/x)", log, command=(sys.executable, "-c", code))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit('no such layer')", "ended early with return code 1"),
        ("import os, sys; print('loading', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)", "out of memory"),
        ("import os; os.abort()", "signal 6 (SIGABRT)"),
    ],
)
def test_a_dead_worker_is_reported_with_its_log(tmp_path: Path, code: str, words: str) -> None:
    with pytest.raises(EvaluationError) as caught, _stand_in(tmp_path / "logs" / "a.log", code) as worker:
        worker.ask(Prepare(path="."), Nothing)
    assert caught.value.exit_code == 2
    assert words in str(caught.value) and "compressed (/x)" in str(caught.value)
    if "abort" not in code:
        assert ("no such layer" in str(caught.value)) or ("loading" in str(caught.value))


def test_a_failed_request_is_reported_with_its_traceback(tmp_path: Path) -> None:
    request = Draw(drawings=[Drawing(index=0, prompt="x", seed=0)], options={}, picture=None)
    with (
        pytest.raises(EvaluationError, match=r"original: .*Error"),
        WorkerProcess("original", tmp_path / "a.log") as worker,
    ):
        worker.ask(request, DrawnPicture)
    assert "Traceback" in (tmp_path / "a.log").read_text()


def test_leaving_ends_the_process(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), _stand_in(tmp_path / "a.log", "input()") as worker:
        raise KeyboardInterrupt
    assert worker._process.poll() is not None


def test_drawings_never_share_a_seed_and_cover_the_set() -> None:
    settings = EvaluationSettings(prompt_count=3, seeds_per_prompt=2, seed=7)
    drawings = list_drawings(settings, PromptSet("six", tuple("abcdef"), 6))
    assert [drawing.prompt for drawing in drawings] == list("aaccee")
    assert [drawing.seed for drawing in drawings] == list(range(7, 13))
    with pytest.raises(EvaluationError, match="3 prompts asked for"):
        list_drawings(settings, PromptSet("two", ("a", "b"), 2))


def test_prompts(tmp_path: Path) -> None:
    assert len(set(GENERAL)) == 24
    assert default_prompts(tiny_sd=False).prompts == GENERAL
    built_in = default_prompts(tiny_sd=True)
    assert built_in.num_inference_steps and built_in.guidance_scale and len(built_in.prompts) >= built_in.default_count
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a dog \r\n", encoding="utf-8")
    assert read_prompts(file) == PromptSet("prompts.txt", ("a cat", "a dog"), 2)
    file.write_text("\n")
    with pytest.raises(EvaluationError, match="holds no prompt"):
        read_prompts(file)
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_prompts(tmp_path / "missing.txt")


def test_tiny_sd_is_known_by_name_and_by_manifest(nano_folder: Path, tmp_path: Path) -> None:
    assert is_tiny_sd(open_source("tiny-sd"))
    assert not is_tiny_sd(open_source(str(nano_folder)))
    made = tmp_path / "made"
    shutil.copytree(nano_folder, made)
    (made / "sdcompress.json").write_text(json.dumps({"source": {"name": "tiny-sd"}}))
    assert is_tiny_sd(open_source(str(made)))


def test_a_lone_variant_is_named_to_the_child_that_opens_it(nano_copy):
    from sdcompress.evaluation.evaluate import _opening
    from sdcompress.sources.opening import open_folder

    assert "variant" not in _opening(open_folder(nano_copy), EvaluationSettings())
    for file in sorted(nano_copy.rglob("*.safetensors")):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    assert _opening(open_folder(nano_copy), EvaluationSettings())["variant"] == "fp16"
