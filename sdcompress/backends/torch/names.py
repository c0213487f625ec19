"""Names of modules in files and in living models, which differ for CLIP since transformers 5.

Files keep `text_model.encoder...` and `vision_model.vision_model.encoder...`; living modules lost that level.
"""

from __future__ import annotations

import re

from torch import nn

_WRAPPER = re.compile(r"(^|(?<=\.))(text_model|vision_model)\.")


def living_name(model: nn.Module, name: str) -> str | None:
    """The name under which `model` has the module or tensor that files call `name`; None if it has none."""
    for candidate in (name, _WRAPPER.sub("", name, count=1)):
        owner, _, leaf = candidate.rpartition(".")
        try:
            if hasattr(model.get_submodule(owner), leaf):
                return candidate
        except AttributeError:
            continue
    return None
