"""The public API: everything that the command line does, in one call each.

Models, recipes and folders are given as names, paths or objects, and typed objects come back. `import sdcompress`
offers the names that scripts need most. Torch and other heavy libraries are imported when a function needs them. What a
user can mend is raised as `sdcompress.errors.UserError`; each function says which kind.
"""

from sdcompress.api.compression import Artifact, Conversion, compress, convert, make_plan, verify
from sdcompress.api.evaluation import RunResult, compare, evaluate, fill_card, history, run
from sdcompress.api.models import SourceOptions, describe, diagnose
from sdcompress.api.searching import search
from sdcompress.backends.generate import generate
from sdcompress.backends.open_pipeline import open_pipeline
from sdcompress.planning.recipe import find_recipe, load_recipe, shipped_recipes
from sdcompress.sources.opening import open_source

__all__ = [
    "Artifact",
    "Conversion",
    "RunResult",
    "SourceOptions",
    "compare",
    "compress",
    "convert",
    "describe",
    "diagnose",
    "evaluate",
    "fill_card",
    "find_recipe",
    "generate",
    "history",
    "load_recipe",
    "make_plan",
    "open_pipeline",
    "open_source",
    "run",
    "search",
    "shipped_recipes",
    "verify",
]
