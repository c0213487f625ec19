"""VAEs whose activations overflow float16, by what their configs say: SDXL's.

Its pipelines move the VAE to float32 while it decodes where its config has `force_upcast`. Pipelines of other families
ignore that entry, which diffusers writes into the config of every AutoencoderKL.
"""

from __future__ import annotations

from sdcompress.sources.spec import ComponentSpec

WHY_FRAGILE = "SDXL's VAE overflows float16, as force_upcast in its config says; pictures would be black"
_HEEDED_BY = "StableDiffusionXL"  # the beginning of the pipelines' names


def overflows_float16(spec: ComponentSpec) -> bool:
    """Whether the component is a VAE that has to compute in float32 (or bfloat16)."""
    kind = spec.class_name == "AutoencoderKL" and spec.pipeline_class.startswith(_HEEDED_BY)
    return kind and bool(spec.config.get("force_upcast", True))  # what diffusers takes a silent config for
