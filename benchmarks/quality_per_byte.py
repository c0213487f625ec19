"""Quality over bytes on the built-in tiny-sd: every format and method of ours, and the peers run for real beside them.

    python benchmarks/quality_per_byte.py [--contenders 'sdnq-*@unet' int8@all] [--count 16]

bitsandbytes, torchao, optimum-quanto and SDNQ run in an environment of their own (out/bench/venv-peers, made from
benchmarks/peers-requirements.txt) by their own calls on the same pipeline: float16 weights in, their codes and scales
as they are, the rest computed in float32. Everybody draws the same prompts from the same latents, without the safety
checker; pictures are compared with the original's. Bytes are those of all weights of text encoder, UNet and VAE. What
an earlier run drew stays in --work and is drawn anew only when its inputs changed. Keeps all raw samples in
benchmarks/results/quality_per_byte.json, draws docs/quality_per_byte.png and prints every point.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.full_size import commit  # noqa: E402
from benchmarks.quality.contender import COUNTED, ORIGINAL, OURS, Contender  # noqa: E402
from benchmarks.quality.ours import list_ours, why_not_here  # noqa: E402
from benchmarks.quality.peers import DISTRIBUTIONS, list_peers  # noqa: E402
from benchmarks.quality.plot import draw_quality  # noqa: E402
from benchmarks.quality.points import Pictures, make_points  # noqa: E402
from benchmarks.quality.running import OTHER_SEED, fingerprint, make_job, run_all, runs_with_peers  # noqa: E402
from benchmarks.quality.table import every_point, quality_per_byte_table  # noqa: E402
from benchmarks.virtual_environment import make_environment, versions_in  # noqa: E402
from sdcompress.calibration.prompts import default_prompts  # noqa: E402
from sdcompress.environment import describe_environment  # noqa: E402
from sdcompress.errors import SdcompressError, UserError  # noqa: E402
from sdcompress.evaluation.metrics.scorer import find_scorer  # noqa: E402
from sdcompress.evaluation.settings import EvaluationSettings, list_drawings  # noqa: E402
from sdcompress.sources.opening import open_source  # noqa: E402

MODEL = "tiny-sd"
RESULT = ROOT / "benchmarks" / "results" / "quality_per_byte.json"
PLOT = ROOT / "docs" / "quality_per_byte.png"
REQUIREMENTS = ROOT / "benchmarks" / "peers-requirements.txt"
ORIGINALS = (
    Contender("original", "float32", ORIGINAL, "original", 16, options={"dtype": "float32"}),
    Contender("original-bfloat16", "bfloat16", ORIGINAL, "original", 16, options={"dtype": "bfloat16"}),
    Contender(
        "original-other-seed", "another seed", ORIGINAL, "original", 16,
        options={"dtype": "float32", "seed_shift": OTHER_SEED},
    ),
    Contender("original-peers", "float32, peers' environment", ORIGINAL, "original", 16, library="peers"),
)  # fmt: skip


def main() -> None:
    arguments = parse_arguments()
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    source = open_source(MODEL)
    assert source.path is not None  # it is built in
    prompts = default_prompts(tiny_sd=True)
    settings = EvaluationSettings(prompt_count=arguments.count)
    drawings = [drawing.to_json() for drawing in list_drawings(settings, prompts)]
    options = {"num_inference_steps": prompts.num_inference_steps, "guidance_scale": prompts.guidance_scale}
    what = "torch, bitsandbytes, torchao, optimum-quanto and SDNQ, about 1.5 GB"
    peers_python = make_environment(arguments.venv, REQUIREMENTS, what)
    environment = describe_environment()
    weights = fingerprint(sorted(source.path.rglob("*.safetensors")))
    texts = {
        "sdcompress": f"{weights} {json.dumps(environment['versions'])}",
        "peers": f"{weights} {REQUIREMENTS.read_text(encoding='utf-8')}",
    }

    wanted = choose(arguments.contenders)
    skipped = {one.key: why_not_here(one, MODEL) for one in wanted if one.owner == OURS}
    skipped = {key: reason for key, reason in skipped.items() if reason is not None}
    for key, reason in skipped.items():
        say(f"{key}: not run, {reason}")
    contenders = {one.key: one for one in (*ORIGINALS, *wanted) if one.key not in skipped}
    jobs = {
        key: make_job(one, model_of(one, source), drawings, options, texts[place_of(one)])
        for key, one in contenders.items()
    }
    pythons = {"sdcompress": sys.executable, "peers": peers_python}
    results = run_all(jobs, arguments.work, pythons, arguments.at_once, say)
    check_originals(results)

    pictures = Pictures(arguments.work / ORIGINALS[0].key / "pictures", drawings, find_scorer(None, tiny_sd=True).path)
    parameters = {name: source.components[name].parameters for name in COUNTED}
    result = {
        "command": "python benchmarks/quality_per_byte.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": environment,
        "peers_environment": versions_in(peers_python, DISTRIBUTIONS),
        "model": MODEL,
        "parameters": parameters,
        "drawings": drawings,
        "options": options,
        "clip_scores": pictures.clip_scores,
        "skipped": skipped,
        "points": [
            point for key, one in contenders.items()
            for point in judge(one, results[key], arguments.work / key / "pictures", pictures, parameters, results)
        ],
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, separators=(",", ":"), ensure_ascii=False)
    arguments.out.write_text(text + "\n", encoding="utf-8")
    draw_quality(result, arguments.plot)
    print(every_point(result), quality_per_byte_table(result), sep="\n\n")
    say(f"written: {arguments.out}, {arguments.plot}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="+", default=["*"], help="names NAME@SCOPE, wildcards allowed")
    parser.add_argument("--count", type=int, default=16, help="prompts")
    parser.add_argument("--at-once", type=int, default=2, help="contenders that draw side by side, a thread each")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "quality_per_byte")
    parser.add_argument("--venv", type=Path, default=ROOT / "out" / "bench" / "venv-peers")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--plot", type=Path, default=PLOT)
    return parser.parse_args()


def choose(patterns: Sequence[str]) -> list[Contender]:
    """The contenders whose key matches a pattern; a pattern that matches none is an error."""
    known = {one.key: one for one in (*list_peers(), *list_ours())}
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise UserError(f"--contenders: {pattern!r} matches none of {', '.join(known)}")
    return [one for key, one in known.items() if any(fnmatch.fnmatch(key, pattern) for pattern in patterns)]


def place_of(contender: Contender) -> str:
    return "peers" if runs_with_peers(contender) else "sdcompress"


def model_of(contender: Contender, source: Any) -> str:
    """What the contender's worker opens: the built-in's name, or its folder where sdcompress is not."""
    return str(source.path) if place_of(contender) == "peers" else MODEL


def check_originals(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises unless every original could be drawn: all else is compared with them."""
    for one in ORIGINALS:
        if results[one.key]["failed"] is not None:
            raise SdcompressError(f"{one.key}: {results[one.key]['failed']}")


def judge(
    contender: Contender,
    result: Mapping[str, Any],
    folder: Path,
    pictures: Pictures,
    parameters: Mapping[str, int],
    results: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The contender's points. Raises when it did not begin with the original's latents."""
    if result["failed"] is not None:
        return make_points(contender, result, parameters, {})
    same = result["latents_sha256"] == results[ORIGINALS[0].key]["latents_sha256"]
    if same == bool(contender.options.get("seed_shift")):
        raise SdcompressError(f"{contender.key}: its initial latents are {'' if same else 'not '}the original's")
    return make_points(contender, result, parameters, pictures.compare(folder))


if __name__ == "__main__":
    main()
