"""The CLIP model that scores: tiny-sd's own, one that the user names, or OpenAI's from the user's hub cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdcompress.errors import EvaluationError

DEFAULT_CLIP = "openai/clip-vit-large-patch14"
TINY_SD_SCORER_NAME = "tiny-sd's own CLIP"
TINY_SD_SCORER = Path(__file__).parents[2] / "assets" / "tiny-sd-scorer"


@dataclass(frozen=True)
class Scorer:
    """A CLIP model in a local folder, and the name that reports give it."""

    name: str
    path: Path


def find_scorer(clip: str | None, tiny_sd: bool) -> Scorer:
    """Return the CLIP model to use, which is on this disk; nothing is downloaded.

    Args:
        clip: a folder or a hub id; None for the one that fits the pipeline.
        tiny_sd: whether the pipeline is tiny-sd, which draws 64-pixel emoji. A small CLIP model trained on such
            pictures scores them; OpenAI's ViT-L/14 scores those of any other pipeline.

    Raises:
        EvaluationError: the model is not there.
    """
    if clip is None and tiny_sd:
        return Scorer(TINY_SD_SCORER_NAME, _complete(TINY_SD_SCORER, "the built-in scorer of tiny-sd"))
    if clip is not None:
        folder = Path(clip).expanduser()
        if folder.exists():
            return Scorer(str(folder), _complete(folder, "--clip"))
    return Scorer(clip or DEFAULT_CLIP, _cached(clip or DEFAULT_CLIP))


def _complete(folder: Path, what: str) -> Path:
    if not (folder / "config.json").is_file():
        raise EvaluationError(f"{what}: {folder} has no config.json, so it is no CLIP model; give another with --clip")
    if not any(folder.glob("*.safetensors")):
        raise EvaluationError(f"{what}: {folder} has no safetensors weights; save the model with safe_serialization")
    return folder


def _cached(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    advice = (
        f"fetch it once with `hf download {hub_id}`, give a folder that holds a CLIP model with --clip PATH, "
        f"or evaluate without CLIP scores with --no-clip"
    )
    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
    except HFValidationError:
        raise EvaluationError(f"--clip: {hub_id} is neither a folder nor a hub id; give one of them") from None
    except LocalEntryNotFoundError:
        raise EvaluationError(f"--clip: {hub_id} is not in your Hugging Face cache; {advice}") from None
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise EvaluationError(f"--clip: {hub_id} is only partly in your Hugging Face cache ({folder}); {advice}")
    return folder
