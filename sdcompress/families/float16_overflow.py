"""VAEs whose activations overflow float16: SDXL's, as its config says.

SDXL's pipelines decode in float32 where the VAE's config has `force_upcast`. Pipelines of other families ignore that
entry, which diffusers writes into the config of every AutoencoderKL.
"""

from __future__ import annotations

from sdcompress.sources.spec import ComponentSpec

WHY_FRAGILE = "SDXL's VAE overflows float16, as force_upcast in its config says; pictures would be black"
_PIPELINES = "StableDiffusionXL"  # prefix of the classes that read the entry


def overflows_float16(spec: ComponentSpec) -> bool:
    """Return whether the component is a VAE that has to compute in float32 (or bfloat16)."""
    kind = spec.class_name == "AutoencoderKL" and spec.pipeline_class.startswith(_PIPELINES)
    return kind and bool(spec.config.get("force_upcast", True))  # diffusers' default where the entry is missing
