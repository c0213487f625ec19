"""The search space: which formats each layer may have, and the bytes of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdcompress.backends.torch.packaging import packed_specs
from sdcompress.calibration.observed_layers import can_be_calibrated
from sdcompress.errors import Problem, UserError
from sdcompress.planning.layer_formats import is_grouped
from sdcompress.planning.steps.cast import Cast
from sdcompress.quant.format import QuantFormat
from sdcompress.quant.registry import from_label, known_roundings
from sdcompress.sources.layer_patterns import first_match, unmatched
from sdcompress.sources.source import Source
from sdcompress.sources.spec import ComponentSpec, Layer, layers_of

DEFAULT_FORMATS = (
    "uint2/64+scale8",
    "uint3/64+scale8",
    "uint4/64+scale8",
    "uint5/64+scale8",
    "uint6/64+scale8",
    "uint8/64+scale8",
)
KEPT = "float16"  # the candidate that leaves a layer as `cast` made it
UNMEASURED = "int8"  # the format of layers that no picture depends on: safety checkers, encoders of pictures
ENCODER = ("encoder.", "quant_conv")  # layers of a VAE that pictures drawn from text do not need
WEIGHT_KINDS = frozenset({"linear", "conv", "conv1x1", "conv3x3", "embedding"})


class Narrowing(BaseModel):
    """Formats for the layers that match, in place of the default ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    layers: tuple[str, ...] = Field(("*",), min_length=1, description="patterns of the layers")
    component: str | None = Field(None, description="the component; all if left out")
    formats: tuple[str, ...] = Field(min_length=1, description="labels such as uint4/64+scale8, or float16")


class Space(BaseModel):
    """What layers may become. A search reads it from YAML with `--space FILE`.

    Examples:
        formats: [uint4/64+scale8, uint8/64+scale8, float16]
        narrow:
          - {component: unet, layers: [conv_in, conv_out], formats: [uint8/64+scale8, float16]}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    formats: tuple[str, ...] = Field((*DEFAULT_FORMATS, KEPT), min_length=1, description="labels of the formats")
    rounding: str = Field("gptq", description="how codes are chosen in the recipe, where layers can be calibrated")
    narrow: tuple[Narrowing, ...] = Field((), description="other formats for some layers; the first that matches wins")

    def formats_for(self, component: str, layer: str) -> tuple[str, ...]:
        """Return the labels that the layer may have."""
        for narrowing in self.narrow:
            if narrowing.component in (None, component) and first_match(narrowing.layers, layer):
                return narrowing.formats
        return self.formats


@dataclass(frozen=True)
class Choices:
    """The candidates of one layer.

    Args:
        shape: of its weight.
        labels: of the formats that it may have, or KEPT.
        weight_bytes: of the weight in each of them.
        measured: whether pictures depend on it, so that candidates have a damage.
        calibrated: whether there are statistics of its input.
        has_bias: whether it has a bias, which can take the mean error of its output.
    """

    component: str
    layer: Layer
    labels: tuple[str, ...]
    weight_bytes: tuple[int, ...]
    measured: bool
    calibrated: bool
    has_bias: bool

    @property
    def key(self) -> str:
        """Its name in files: component and layer."""
        return f"{self.component}:{self.layer.name}"


def read_space(file: Path | None) -> Space:
    """Return the space in a YAML file, or the default one. UserError with all that is wrong with it."""
    if file is None:
        return Space()
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
        space = Space.model_validate(value if isinstance(value, dict) else {"": value})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        raise UserError(
            (Problem(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()), where=str(file)
        ) from None
    problems = []
    if space.rounding not in known_roundings():
        problems.append(Problem("rounding", f"no way of rounding {space.rounding!r}"))
    for label in {*space.formats, *(label for each in space.narrow for label in each.formats)} - {KEPT}:
        try:
            if from_label(label).library != "sdcompress":
                problems.append(Problem("formats", f"{label} is bitsandbytes'; name formats of sdcompress's own"))
        except (KeyError, ValueError):
            problems.append(Problem("formats", f"no format {label!r}; docs/quantization.md lists them"))
    if problems:
        raise UserError(problems, where=str(file))
    return space


def list_choices(source: Source, space: Space) -> list[Choices]:
    """Return the candidates of every layer with a weight, in the pipeline's order.

    Raises:
        UserError: a pattern of the space matches no layer, or a layer can have none of its formats.
    """
    found, problems = [], []
    for name, spec in casted(source).items():
        observed = can_be_calibrated(spec)
        layers = [layer for layer in layers_of(spec) if layer.kind in WEIGHT_KINDS]
        for narrowing in space.narrow:
            if narrowing.component == name:
                missing = unmatched(narrowing.layers, [layer.name for layer in layers])
                problems += [Problem("narrow", f"{pattern!r} matches no layer of {name}") for pattern in missing]
        for layer in layers:
            weight = spec.tensors[f"{layer.name}.weight"]
            measured = observed and not (name == "vae" and layer.name.startswith(ENCODER))
            wanted = space.formats_for(name, layer.name) if measured else (UNMEASURED, KEPT)
            labels, sizes = [], []
            for label in wanted:
                size = weight.size_bytes if label == KEPT else _packed_bytes(from_label(label), layer, spec)
                if size is not None:
                    labels.append(label)
                    sizes.append(size)
            if not labels:
                labels, sizes = [KEPT], [weight.size_bytes]
            with_inputs = observed and layer.kind != "embedding" and not is_grouped(layer, spec)
            found.append(
                Choices(
                    name,
                    layer,
                    tuple(labels),
                    tuple(sizes),
                    measured,
                    with_inputs,
                    f"{layer.name}.bias" in spec.tensors,
                )
            )
    if problems:
        raise UserError(problems)
    return found


def casted(source: Source) -> dict[str, ComponentSpec]:
    """Return component -> its spec in float16, as the recipe's `cast` makes it."""
    step = Cast(dtype="float16")
    return {name: step.plan(spec, "torch").spec for name, spec in source.components.items()}


def fixed_bytes(source: Source, choices: Sequence[Choices]) -> int:
    """Return the bytes of everything but the weights of the layers: biases, norms, buffers."""
    total = 0
    chosen = {choice.key for choice in choices}
    for name, spec in casted(source).items():
        for tensor, each in spec.tensors.items():
            if f"{name}:{tensor.removesuffix('.weight')}" not in chosen or not tensor.endswith(".weight"):
                total += each.size_bytes
    return total


def _packed_bytes(fmt: QuantFormat, layer: Layer, spec: ComponentSpec) -> int | None:
    """Return the bytes of the layer's weight in the format; None where it cannot have it."""
    if layer.kind not in fmt.kinds or (layer.kind == "conv" and len(layer.shape) != 4):
        return None
    if fmt.problem(layer, "torch") is not None:
        return None
    weight = spec.tensors[f"{layer.name}.weight"]
    return sum(each.size_bytes for each in packed_specs(layer.name, fmt, weight, stock=False).values())
