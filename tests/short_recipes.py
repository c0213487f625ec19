"""Recipes that take seconds: one with every kind of stored part, and shipped ones, trained and calibrated briefly."""

from sdcompress.calibration.settings import Calibration
from sdcompress.planning.recipe import Recipe

# Every kind of stored part in one pipeline; nano's convolutions have channels that groups do not divide.
VARIED = """
schema_version: 1
description: T
components:
  unet:
    - quantize:
        format: uint4
        group_size: 24
        scale_bits: 8
        keep_sensitive: false
        overrides:
          - {layers: ["down_blocks"], format: normal-float4}
          - {layers: ["mid_block"], format: int3, hadamard: true}
          - {layers: ["up_blocks.0"], format: codebook4, group_size: 5}
  vae: [{quantize: {format: int6, keep_sensitive: false}}]
  text_encoder: [{quantize: {format: codebook5, group_size: 7, keep_sensitive: false}}]
"""


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
