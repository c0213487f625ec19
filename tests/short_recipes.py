"""Shipped recipes that take seconds: all but how long they train and calibrate is as it was."""

from sdcompress.calibration.settings import Calibration
from sdcompress.planning.recipe import Recipe


def shortened(recipe: Recipe) -> Recipe:
    """The recipe with two steps of training on two prompts in place of minutes."""
    short = {"minutes": None, "steps": 2, "prompt_count": 2}
    components = {
        key: tuple(step.model_copy(update=short) if step.kind == "recover" else step for step in steps)
        for key, steps in recipe.components.items()
    }
    return recipe.model_copy(update={"components": components})


def quick(recipe: Recipe) -> Recipe:
    """The recipe shortened, and calibrated on one picture of two steps."""
    return shortened(recipe).model_copy(update={"calibration": Calibration(prompt_count=1, num_inference_steps=2)})
