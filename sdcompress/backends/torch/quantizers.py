"""The quantizers with which stock diffusers and transformers open components in sdcompress's own layout.

They also open components that were pruned in ways that no stock config can state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from sdcompress.backends.torch.packaging import CONFIG_SCHEMA, DYNAMIC, QUANT_METHOD
from sdcompress.errors import ArtifactError
from sdcompress.quant.format import QuantFormat
from sdcompress.sources.pruned_config import SCHEMA as PRUNING_SCHEMA
from sdcompress.sources.pruned_config import parse_pruning


def register_diffusers() -> None:
    """Register `quant_method: sdcompress` with diffusers."""
    from diffusers.quantizers import auto
    from diffusers.quantizers.base import DiffusersQuantizer
    from diffusers.quantizers.quantization_config import QuantizationConfigMixin

    config, quantizer = _classes(QuantizationConfigMixin, DiffusersQuantizer)
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = config
    auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = quantizer


def register_transformers() -> None:
    """Register `quant_method: sdcompress` with transformers."""
    from transformers.quantizers import auto
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    config, quantizer = _classes(QuantizationConfigMixin, HfQuantizer)
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = config
    auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = quantizer


def formats_of(layers: Mapping[str, str]) -> dict[str, QuantFormat]:
    """Return layer -> format from layer -> label. ArtifactError for an unknown format or option."""
    from sdcompress.quant.registry import from_label

    formats: dict[str, QuantFormat] = {}
    for label in sorted(set(layers.values())):
        try:
            formats[label] = from_label(label)
        except (KeyError, ValueError):
            raise ArtifactError(
                f"format {label} is unknown to this version of sdcompress; install a newer one"
            ) from None
    return {name: formats[label] for name, label in layers.items()}


def _classes(config_mixin: type[Any], quantizer_base: type[Any]) -> tuple[type[Any], type[Any]]:
    """Return a config class and a quantizer class over one library's base classes; both libraries call them alike."""

    class Method(str, Enum):  # both libraries read an enum's value
        SDCOMPRESS = QUANT_METHOD

    class SdcompressConfig(config_mixin):  # type: ignore[misc]
        """The `quantization_config` of a component.

        Args:
            layers: layer -> format label.
            dynamic_activations: the layers that round their inputs when they run.
            pruning: how the component was pruned (see `sources.pruned_config`).
        """

        def __init__(
            self,
            layers: Mapping[str, str],
            schema_version: int = CONFIG_SCHEMA,
            dynamic_activations: Sequence[str] = (),
            pruning: Mapping[str, Any] | None = None,
            **_: Any,
        ):
            if schema_version > max(CONFIG_SCHEMA, PRUNING_SCHEMA):
                raise ArtifactError(f"quantization_config has schema {schema_version}; install a newer sdcompress")
            self.quant_method = Method.SDCOMPRESS
            self.schema_version = schema_version
            self.layers = dict(layers)
            self.dynamic_activations = list(dynamic_activations)
            self.pruning = parse_pruning(pruning)

        def to_dict(self) -> dict[str, Any]:
            said = {"quant_method": QUANT_METHOD, "schema_version": self.schema_version, "layers": dict(self.layers)}
            said |= {DYNAMIC: list(self.dynamic_activations)} if self.dynamic_activations else {}
            return said | ({"pruning": self.pruning.to_dict()} if self.pruning else {})

        def to_diff_dict(self) -> dict[str, Any]:
            return self.to_dict()

    class SdcompressQuantizer(quantizer_base):  # type: ignore[misc]
        """Puts quantized modules into the empty model. Codes and scales are then loaded like any other tensor."""

        requires_calibration = False

        def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
            from sdcompress.backends.torch.modules import replace_layers
            from sdcompress.backends.torch.pruned_modules import rebuild

            asked = self.quantization_config
            rebuild(model, asked.pruning)
            replace_layers(model, formats_of(asked.layers), frozenset(asked.dynamic_activations))
            model.config.quantization_config = self.quantization_config
            return model

        def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
            from sdcompress.backends.torch.modules import cast_scales

            _cast_parameters(model)
            cast_scales(model)
            model.is_quantized = False  # so that both libraries allow casts: scales follow, codes are integers
            return model

        def is_serializable(self, *_: Any, **__: Any) -> bool:
            return True

        @property
        def is_trainable(self) -> bool:
            return False

        @property
        def is_compileable(self) -> bool:
            return True

    return SdcompressConfig, SdcompressQuantizer


def _cast_parameters(model: Any) -> None:
    """Convert the model's parameters to the precision that was asked for, but those that its class keeps in float32.

    Some versions of transformers (5.17) leave tensors in their file's precision if the class renamed them, such as
    those of CLIP's text encoders, whose names lack a level since transformers 5. diffusers' configs state no precision.
    """
    import torch

    asked = getattr(model.config, "dtype", None)
    if not isinstance(asked, torch.dtype):
        return
    lists = (getattr(model, name, None) or () for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"))
    kept = {module for modules in lists for module in modules}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != asked and not kept & {*name.split(".")}:
            parameter.data = parameter.data.to(asked)
