"""What a file in `components/families/` says: what is known of a class of component, and of a family of pipelines.

A new family is one such file. What an Architecture leaves out is not known of the class, and the steps that need it
refuse it in the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sdcompress.families.onnx_parts import OnnxPart
    from sdcompress.sources.spec import ComponentSpec

Role = Literal["text encoder", "denoiser", "autoencoder", "safety checker", "control network"]
# What a pipeline draws from besides the prompt: a picture to draw over, the part of it to draw anew, a picture whose
# structure a ControlNet follows.
PictureInput = Literal["image", "mask_image", "control_image"]


@dataclass(frozen=True)
class FoldRule:
    """Modules of one parent: all of `consumers` take what `producer` gives, and so do those of `optional` there are.

    A module of `also` that there is gives the same channels to the same modules. See components/foldable.py.
    """

    producer: str
    consumers: tuple[str, ...]
    gated: bool = False  # the first half of the producer's rows; the second half is what they are multiplied with
    also: str | None = None
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class BlockList:
    """A list of alike blocks, each of which adds to what it gets: any can go, and the config says how many are left.

    indexed: config entries that list places of blocks. last_stays: whether the last one is built otherwise.
    """

    name: str  # of the module that holds them
    count: str  # the config entry with their number
    indexed: tuple[str, ...] = ()
    last_stays: bool = False


@dataclass(frozen=True)
class Architecture:
    """What is known about components of one class.

    sensitive: patterns of the layers that low bits hurt most (components/sensitive.py). grouped: patterns of its
    convolutions in several groups, of whose input no statistics are gathered. folds: where the inputs of its
    layers can be scaled at no cost. onnx_parts: its graphs, given its spec and the class of the pipeline it is in.
    calibrated: whether its layers can be watched while pictures are drawn; reads_text: of which layers the first token
    of the input, the start of text, is an outlier (a regular expression). blocks: what `prune` can take out of it.
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

    encoded: what their `encode_prompt` returns, in order, under the names that their call takes ("": not an argument).
    guided: whether the default kind of guidance runs the denoiser on the empty prompt as well.
    pictures: class of pipeline -> what it draws from besides the prompt, in the order of the arguments' names.
    call: arguments that an evaluation or calibration always gives, so that pictures have the size that is asked for.
    """

    name: str
    pipelines: tuple[str, ...]
    encoded: tuple[str, ...]
    guided: bool = True
    pictures: Mapping[str, Mapping[str, PictureInput]] = field(default_factory=dict)
    call: Mapping[str, object] = field(default_factory=dict)
