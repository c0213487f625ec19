"""sdcompress: Stable Diffusion pipelines made smaller and faster, and the proof of what that cost.

The names below are the public API (`sdcompress.api`). Importing sdcompress also lets stock
`DiffusionPipeline.from_pretrained` open artifacts in sdcompress's own formats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdcompress.backends.torch.import_hook import when_imported
from sdcompress.version import __version__

__all__ = [
    "Plan",
    "Recipe",
    "Report",
    "Source",
    "__version__",
    "compare",
    "compress",
    "convert",
    "evaluate",
    "generate",
    "load_recipe",
    "make_plan",
    "open_pipeline",
    "open_source",
    "run",
    "search",
    "verify",
]

if TYPE_CHECKING:
    from sdcompress.api import (
        compare,
        compress,
        convert,
        evaluate,
        generate,
        load_recipe,
        make_plan,
        open_pipeline,
        open_source,
        run,
        search,
        verify,
    )
    from sdcompress.planning.plan import Plan
    from sdcompress.planning.recipe import Recipe
    from sdcompress.report import Report
    from sdcompress.sources.source import Source

_HOMES = {
    "Plan": "sdcompress.planning.plan",
    "Recipe": "sdcompress.planning.recipe",
    "Source": "sdcompress.sources.source",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import sdcompress` is quick."""
    if name not in __all__:
        raise AttributeError(f"module 'sdcompress' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES.get(name, "sdcompress.api")), name)
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
