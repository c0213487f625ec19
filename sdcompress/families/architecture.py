"""What a module of `described/` says: an Architecture describes a class of component, a Family a family of pipelines.

A new family is one such module. What an Architecture leaves out is unknown, and steps that need it refuse the class in
the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sdcompress.sources.spec import ComponentSpec

Role = Literal["text encoder", "denoiser", "autoencoder", "safety checker", "control network", "unknown"]
# What a pipeline draws from besides the prompt: a picture to draw over, the part of it to draw anew, a picture whose
# structure a ControlNet follows.
PictureInput = Literal["image", "mask_image", "control_image"]
# Outputs of a ControlNet that the UNet beside it adds to its own; the first are numbered.
DOWN_RESIDUAL, MID_RESIDUAL = "down_block_residual_", "mid_block_residual"


@dataclass(frozen=True)
class FoldRule:
    """Where the inputs of layers can be scaled at no cost, by names within one parent module (see foldable.py).

    Args:
        producer: the module that takes the inverse scale.
        consumers: the layers that take what the producer gives.
        gated: whether the producer's output is its first half times its second half, as in GEGLU.
        also: a module, where there is one, that gives the same channels to the same layers.
        optional: further consumers, as far as they exist.
        unless: config entries; where one of them is true, the rule does not hold.
    """

    producer: str
    consumers: tuple[str, ...]
    gated: bool = False
    also: str | None = None
    optional: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()


@dataclass(frozen=True)
class BlockList:
    """A list of residual blocks of equal shape. Any can be removed; the config tells how many there are.

    Args:
        name: the module that holds the blocks.
        count: the config entry with their number.
        indexed: config entries that list indices of blocks.
        last_stays: whether the last block is built differently, so that it must stay.
    """

    name: str
    count: str
    indexed: tuple[str, ...] = ()
    last_stays: bool = False


@dataclass(frozen=True)
class OnnxInput:
    """One input of an ONNX graph.

    Args:
        shape: its dimensions; a named one may have any size, unless the export fixes it. `height/4` is `height` halved
            twice, `height*8` eight times `height`.
        dtype: `float` or `int64`.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float"


@dataclass(frozen=True)
class OnnxPart:
    """One ONNX graph of a component, with the names that optimum's exporter uses.

    Args:
        folder: the folder of the graph.
        component: the component's name.
        kind: text_encoder, unet, transformer, controlnet, vae_encoder, vae_decoder or safety_checker.
        inputs: its inputs, in order.
        outputs: names of its outputs, in order.
        prefixes: beginnings of the names of the component's parameters that the graph holds; none: it holds all.
    """

    folder: str
    component: str
    kind: str
    inputs: tuple[OnnxInput, ...]
    outputs: tuple[str, ...]
    prefixes: tuple[str, ...] = ()

    def holds(self, parameter: str) -> bool:
        """Return whether the graph holds the component's parameter of that name."""
        return not self.prefixes or parameter.startswith(self.prefixes)


@dataclass(frozen=True)
class Architecture:
    """What is known about components of one class.

    Args:
        sensitive: patterns of the layers that low bits hurt most. Formats below 8 bits keep them unless a recipe says
            otherwise. Published sensitivities (MixDQ, arXiv:2405.17873; Q-Diffusion, arXiv:2302.04304; Apple's
            mixed-bit palettization) agree on the time embedding and its projections, the first and last layers, the
            shortcut convolutions and the projections around attention: 8.8 % of the weights of SD 1.5's UNet.
        grouped: patterns of its convolutions in several groups, for whose inputs no statistics are gathered.
        folds: where the inputs of its layers can be scaled at no cost.
        onnx_parts: returns its graphs, given its spec and the class of the pipeline that it is in.
        calibrated: whether its layers can be observed while pictures are drawn.
        reads_text: regular expression of the layers for which the first token of the input, the start of text, is an
            outlier.
        blocks: what `prune` can remove.
    """

    class_name: str
    role: Role
    sensitive: tuple[str, ...] = ()
    grouped: tuple[str, ...] = ()
    folds: tuple[FoldRule, ...] = ()
    onnx_parts: Callable[[ComponentSpec, str], tuple[OnnxPart, ...]] | None = None
    calibrated: bool = False
    reads_text: str | None = None
    blocks: tuple[BlockList, ...] = ()


@dataclass(frozen=True)
class Family:
    """What is known about pipelines of some classes that are built and called alike.

    Args:
        pipelines: names of the classes.
        encoded: names of the pipeline's arguments that its `encode_prompt` returns, in order; "" where one is not an
            argument.
        guided: whether guidance runs the denoiser on the empty prompt too.
        pictures: class of pipeline -> argument -> kind of picture that it draws from besides the prompt.
        call: arguments that calibration and evaluation always give, so that pictures have the size that was asked for.
    """

    name: str
    pipelines: tuple[str, ...]
    encoded: tuple[str, ...]
    guided: bool = True
    pictures: Mapping[str, Mapping[str, PictureInput]] = field(default_factory=dict)
    call: Mapping[str, object] = field(default_factory=dict)
