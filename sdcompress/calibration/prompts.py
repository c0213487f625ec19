"""Sets of prompts: tiny-sd's own, and a small general set."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sdcompress.files.manifest import is_artifact, read_manifest
from sdcompress.sources.source import ASSETS, Source

TINY_SD = "tiny-sd"
TINY_SD_PROMPTS = ASSETS / "tiny-sd-prompts.json"

# Written for sdcompress: objects, counts, colours, places, light, materials, faces and lettering, in various styles.
GENERAL = (
    "a red apple on a wooden table, soft window light",
    "a photo of a black cat asleep on a blue sofa",
    "three green bottles on a white shelf",
    "a lighthouse on a cliff at sunset, oil painting",
    "a steaming bowl of noodle soup seen from above",
    "portrait of an old fisherman with a grey beard, studio photograph",
    "a yellow bicycle leaning against a brick wall",
    "a snowy village at night, warm lights in the windows",
    "a glass of water with two ice cubes, macro photograph",
    "an astronaut riding a horse through a field of flowers",
    "a watercolour of a fox in an autumn forest",
    "a wooden chair to the left of a round mirror",
    "a street market in the rain, people with umbrellas",
    "a close-up of a bee on a purple flower",
    "a small robot made of copper, holding a lantern",
    "the word OPEN on a shop door, hand-painted sign",
    "a desert highway under a stormy sky, wide angle",
    "a stack of old books with a teacup on top",
    "a child's crayon drawing of a house and a sun",
    "a silver train crossing a stone bridge over a river",
    "two parrots, one blue and one red, on a branch",
    "a modern kitchen with white tiles and a green plant",
    "a chess board in the middle of a game, shallow depth of field",
    "an aerial view of fields in spring, patchwork of colours",
)


@dataclass(frozen=True)
class PromptSet:
    """Prompts under a name, with the sampler settings that they are meant for (None: the pipeline's own default)."""

    name: str
    prompts: tuple[str, ...]
    default_count: int
    num_inference_steps: int | None = None
    guidance_scale: float | None = None

    def take(self, count: int) -> tuple[str, ...]:
        """Return `count` prompts spread evenly over the set, so that a few still cover every kind of prompt in it."""
        return tuple(self.prompts[place * len(self.prompts) // count] for place in range(count))


def is_tiny_sd(source: Source) -> bool:
    """Return whether the pipeline is tiny-sd, or an artifact that was made from it.

    Raises:
        ArtifactError: the artifact's manifest cannot be read.
    """
    if source.kind == "built-in":
        return source.name == TINY_SD
    return source.path is not None and is_artifact(source.path) and read_manifest(source.path).source.name == TINY_SD


def default_prompts(tiny_sd: bool) -> PromptSet:
    """Return the built-in prompts that fit: combinations that tiny-sd has seen, or the general set.

    Examples:
        >>> default_prompts(tiny_sd=False).take(2)
        ('a red apple on a wooden table, soft window light', 'a street market in the rain, people with umbrellas')
    """
    if not tiny_sd:
        return PromptSet("general", GENERAL, default_count=16)
    content = json.loads(TINY_SD_PROMPTS.read_text(encoding="utf-8"))
    return PromptSet(
        "tiny-sd, seen combinations",
        tuple(content["seen"]),
        default_count=32,
        num_inference_steps=content["num_inference_steps"],
        guidance_scale=content["guidance_scale"],
    )


def split_prompts(prompt_set: PromptSet, count: int) -> tuple[tuple[str, ...], PromptSet]:
    """Return at most `count` of the prompts to calibrate on, and the set of all others to evaluate on.

    Of few prompts every other one is taken; of a single one, both sides get it.

    Examples:
        >>> split_prompts(PromptSet("mine", ("a", "b", "c", "d"), 4), 16)[0]
        ('a', 'c')
    """
    prompts = prompt_set.prompts
    if len(prompts) == 1:
        return prompts, prompt_set
    taken = prompts[:: max(2, len(prompts) // count)][:count]
    others = tuple(prompt for prompt in prompts if prompt not in taken)
    return taken, PromptSet(
        prompt_set.name, others, len(others), prompt_set.num_inference_steps, prompt_set.guidance_scale
    )
