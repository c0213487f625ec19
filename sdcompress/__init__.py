"""sdcompress: Stable Diffusion pipelines made smaller, and the proof of what that cost.

Importing it lets stock `DiffusionPipeline.from_pretrained` open artifacts in sdcompress's own formats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdcompress.backends.torch.import_hook import when_imported
from sdcompress.version import __version__

__all__ = [
    "Plan",
    "Recipe",
    "Source",
    "__version__",
    "load_recipe",
    "make_plan",
    "open_pipeline",
    "open_source",
]

if TYPE_CHECKING:
    from sdcompress.backends.open_pipeline import open_pipeline
    from sdcompress.planning.plan import Plan, make_plan
    from sdcompress.planning.recipe import Recipe, load_recipe
    from sdcompress.sources.opening import open_source
    from sdcompress.sources.source import Source

_HOMES = {
    "open_pipeline": "sdcompress.backends.open_pipeline",
    "Plan": "sdcompress.planning.plan",
    "make_plan": "sdcompress.planning.plan",
    "Recipe": "sdcompress.planning.recipe",
    "load_recipe": "sdcompress.planning.recipe",
    "Source": "sdcompress.sources.source",
    "open_source": "sdcompress.sources.opening",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used, so that `import sdcompress` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sdcompress' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def _register_diffusers() -> None:
    from sdcompress.backends.torch.quantizers import register_diffusers

    register_diffusers()


def _register_transformers() -> None:
    from sdcompress.backends.torch.quantizers import register_transformers

    register_transformers()


when_imported("diffusers.quantizers.auto", _register_diffusers)
when_imported("transformers.quantizers.auto", _register_transformers)
