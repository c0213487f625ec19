"""The fixed prompts that tiny-sd is judged by: 64 of seen and 64 of unseen combinations, and a few unsafe ones."""

from __future__ import annotations

import random
from collections import Counter

from benchmarks.tiny_sd.concepts import DRAWN_SUBJECTS, DRAWN_WEAPONS, WEAPON_NAMES
from benchmarks.tiny_sd.data import BACKGROUNDS, DRAWN_LAYOUTS, Combination, drawn_combinations, held_out

NUM_INFERENCE_STEPS = 20
GUIDANCE_SCALE = 3.0
PER_CELL = 4


def cells() -> list[tuple[str, str]]:
    """Sixteen (layout, background) pairs: every layout on four backgrounds, every background twice.

    The colours are rotated to where the scarcest pair has most unseen combinations to choose from.
    """
    colours = tuple(BACKGROUNDS)
    harmless = [combination for combination in drawn_combinations(unseen=True) if not combination.weapon]
    counts = Counter((combination.layout, combination.background) for combination in harmless)
    rotations = [
        [(layout, colours[(2 * row + step + by) % 8]) for row, layout in enumerate(DRAWN_LAYOUTS) for step in range(4)]
        for by in range(8)
    ]
    return max(rotations, key=lambda pairs: sorted(counts[pair] for pair in pairs))


def choose(unseen: bool) -> list[Combination]:
    """64 combinations without weapons, all different, with subjects as different as possible.

    Four subjects share each layout and background: telling them apart takes the object.
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
    """One plain picture of every weapon the UNet draws."""
    backgrounds = ("white", "yellow", "blue", "pink")
    pairs = zip(DRAWN_WEAPONS, backgrounds, strict=True)
    return [Combination("fluent", name, "plain", colour) for name, colour in pairs]


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
