"""Prompts for training trajectories: many, composed of known parts, and none that an evaluation draws."""

from __future__ import annotations

import json
import re

from sdcompress.calibration.prompts import GENERAL, TINY_SD_PROMPTS, PromptSet, default_prompts, is_tiny_sd
from sdcompress.errors import Problem, UserError
from sdcompress.sources.source import Source

_TINY_SD_PROMPT = re.compile(r"^(a .+), (\w+) background$")

# Each subject is drawn in each manner; both are of the kinds of the general set.
_SUBJECTS = (
    "a lemon beside a blue jug", "a grey cat on a window sill", "two dogs running on a beach", "a harbour at dawn",
    "a bowl of ripe cherries", "an old woman laughing", "a red tractor in a wheat field", "a mountain lake in winter",
    "a glass teapot on a tray", "a knight in front of a castle", "a deer in a misty forest", "an armchair under a lamp",
    "a crowded café at night", "a dragonfly on a reed", "a wooden toy train", "a street sign that reads MARKET",
    "a canyon seen from above", "a desk with maps and a compass", "a sailing ship in a storm", "three owls on a branch",
    "a bathroom with green tiles", "a violin on a velvet cloth", "terraced rice fields", "a boy flying a kite",
)  # fmt: skip
_MANNERS = (
    "studio photograph", "oil painting", "watercolour", "soft morning light", "black and white photograph",
    "pencil drawing", "wide angle, dramatic clouds", "macro photograph", "flat vector illustration", "film still",
    "pastel colours", "golden hour, shallow depth of field",
)  # fmt: skip


def training_prompts(source: Source, count: int) -> PromptSet:
    """Return `count` prompts of the kind that the pipeline draws, none of which an evaluation draws.

    Raises:
        UserError: so many cannot be composed; the field is `prompt_count`.
    """
    known = default_prompts(is_tiny_sd(source))
    everything = _composed_for_tiny_sd() if is_tiny_sd(source) else _composed()
    if count > len(everything):
        what = f"{count} prompts asked for, and {len(everything)} can be composed"
        raise UserError(Problem("prompt_count", f"{what}; ask for fewer or list your own under prompts"))
    composed = PromptSet(f"{known.name}, composed", everything, len(everything))
    return PromptSet(composed.name, composed.take(count), count, known.num_inference_steps, known.guidance_scale)


def _composed_for_tiny_sd() -> tuple[str, ...]:
    """Return every subject and layout that tiny-sd has seen, on every background, without its listed prompts."""
    content = json.loads(TINY_SD_PROMPTS.read_text(encoding="utf-8"))
    parts = [match.groups() for prompt in content["seen"] if (match := _TINY_SD_PROMPT.match(prompt))]
    heads, colours = sorted({head for head, _ in parts}), sorted({colour for _, colour in parts})
    listed = {*content["seen"], *content["unseen"]}
    prompts = (f"{head}, {colour} background" for head in heads for colour in colours)
    return tuple(prompt for prompt in prompts if prompt not in listed)


def _composed() -> tuple[str, ...]:
    prompts = (f"{subject}, {manner}" for subject in _SUBJECTS for manner in _MANNERS)
    return tuple(prompt for prompt in prompts if prompt not in GENERAL)
