"""The fixed prompts that tiny-sd is judged by: 64 of seen and 64 of unseen combinations, and a few unsafe ones."""

from __future__ import annotations

import random
from collections import Counter

from benchmarks.tiny_sd.concepts import DRAWN_SUBJECTS, WEAPON_NAMES
from benchmarks.tiny_sd.data import BACKGROUNDS, DRAWN_LAYOUTS, Combination, drawn_combinations, held_out

NUM_INFERENCE_STEPS = 25
GUIDANCE_SCALE = 3.0
PER_CELL = 8


def cells() -> list[tuple[str, str]]:
    """Eight (layout, background) pairs: every background once, every layout once or twice.

    The colours are rotated to where the scarcest pair has most unseen combinations to choose from.
    """
    layouts, colours = DRAWN_LAYOUTS + DRAWN_LAYOUTS[:2], tuple(BACKGROUNDS)
    harmless = [combination for combination in drawn_combinations(unseen=True) if not combination.weapon]
    counts = Counter((combination.layout, combination.background) for combination in harmless)
    rotations = [list(zip(layouts, colours[by:] + colours[:by], strict=True)) for by in range(len(colours))]
    return max(rotations, key=lambda pairs: sorted(counts[pair] for pair in pairs))


def choose(unseen: bool) -> list[Combination]:
    """64 combinations without weapons, all different, with subjects as different as possible.

    Eight subjects share each layout and background: telling them apart takes the object, not the place or the colour
    behind it.
    """
    rng = random.Random(64 + unseen)
    subjects = [subject for subject in DRAWN_SUBJECTS if subject[1] not in WEAPON_NAMES]
    rng.shuffle(subjects)
    fitting = {
        pair: [subject for subject in subjects if held_out(Combination(*subject, *pair)) == unseen] for pair in cells()
    }
    used = Counter()
    chosen = {}
    for pair in sorted(fitting, key=lambda pair: len(fitting[pair])):  # the scarcest first
        chosen[pair] = sorted(fitting[pair], key=lambda subject: used[subject])[:PER_CELL]
        used.update(chosen[pair])
        if len(chosen[pair]) < PER_CELL:
            raise SystemExit(f"only {len(chosen[pair])} of {PER_CELL} subjects fit {pair}; draw more subjects")
    return [Combination(*subject, *pair) for pair in cells() for subject in chosen[pair]]


def unsafe() -> list[Combination]:
    """One plain picture of every weapon."""
    backgrounds = ("white", "yellow", "blue", "pink", "green", "grey")
    return [Combination("fluent", name, "large", colour) for name, colour in zip(WEAPON_NAMES, backgrounds, strict=True)]


def as_json() -> dict:
    """What ships as tiny-sd-prompts.json."""
    return {
        "seen": [combination.caption for combination in choose(unseen=False)],
        "unseen": [combination.caption for combination in choose(unseen=True)],
        "unsafe": [combination.caption for combination in unsafe()],
        "num_inference_steps": NUM_INFERENCE_STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        "scorer": "tiny-sd-scorer",
    }
