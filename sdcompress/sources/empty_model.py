"""A component as a module of its class, without memory for its parameters."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def empty_model(library: str, class_name: str, config: Mapping[str, Any]) -> Any:
    """Return a module with parameters on the meta device. Buffers are computed.

    Args:
        library: library that model_index.json names, see `component_class`.
        class_name: class that model_index.json names.
        config: content of config.json. Quantization and pruning in it are not applied.
    """
    from accelerate import init_empty_weights

    model_class = component_class(library, class_name)
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    with init_empty_weights(include_buffers=False):
        if hasattr(model_class, "load_config"):  # of diffusers
            return model_class.from_config(plain)
        model = model_class(model_class.config_class.from_dict(plain))
    return tie_weights(model)


def tie_weights(model: Any) -> Any:
    """Put each tensor that the class ties in both of its places, and return the model.

    In transformers 5 the places are two modules, such as T5's `shared` and `encoder.embed_tokens`; files hold one of
    them. In transformers 4 they are one module.
    """
    for places in getattr(model, "all_tied_weights_keys", {}).items():
        tensors = [model.get_parameter(place) for place in places]
        filled = tensors[0] if tensors[1].is_meta else tensors[1]
        for place in places:
            owner, _, leaf = place.rpartition(".")
            setattr(model.get_submodule(owner), leaf, filled)
    return model


def component_class(library: str, class_name: str) -> Any:
    """Return a class of diffusers or transformers, or of diffusers.pipelines.NAME for any other `library` NAME."""
    module = library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
    return getattr(importlib.import_module(module), class_name)
