"""A component as an object of its own class, without memory for its parameters."""

from __future__ import annotations

import importlib
from typing import Any

from sdcompress.sources.spec import ComponentSpec


def empty_model(spec: ComponentSpec) -> Any:
    """Return the component as a module of its class, made of its config, with parameters on the meta device.

    Quantization and pruning that the config mentions are not applied.
    """
    from accelerate import init_empty_weights

    model_class = component_class(spec.library, spec.class_name)
    config = {name: value for name, value in spec.config.items() if name != "quantization_config"}
    with init_empty_weights(include_buffers=False):
        if spec.library == "diffusers":
            return model_class.from_config(config)
        model = model_class(model_class.config_class.from_dict(config))
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
    """Return the class of an entry of model_index.json, whose library may be a folder of diffusers' pipelines."""
    module = library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
    return getattr(importlib.import_module(module), class_name)
