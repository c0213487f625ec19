"""The manifest of an artifact, `sdcompress.json`: how the artifact was made, and what became of each layer."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from sdcompress.errors import ArtifactError

MANIFEST_NAME = "sdcompress.json"
MANIFEST_SCHEMA = 1


class LayerStatus(str, Enum):
    """What became of a layer."""

    QUANTIZED = "quantized"
    KEPT = "kept"  # as it was
    SPARSE = "sparse"  # some of its weights are zero
    NARROWED = "narrowed"  # it has fewer channels, heads or features
    REMOVED = "removed"


# Kinds of "layers" that only `prune` writes: whole modules that it removed or narrowed.
_PRUNED_KINDS = {
    "block": LayerStatus.REMOVED,
    "attention": LayerStatus.NARROWED,
    "feed-forward": LayerStatus.NARROWED,
    "resnet": LayerStatus.NARROWED,
}


class _Entry(BaseModel):
    """Part of a manifest. Keys that this version does not know are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def to_json(self) -> dict[str, Any]:
        """Return the entry as `sdcompress.json` holds it: only what was given, in the order of the fields."""
        return self.model_dump(exclude_unset=True)


class BeforeAndAfter(_Entry):
    """A count of the original and of the compressed component."""

    original: int
    compressed: int


class LayerEntry(_Entry):
    """What became of one layer.

    Args:
        kind: `linear`, `conv`, ... or what `prune` took away: `block`, `attention`, `feed-forward`, `resnet`.
        parameters: number of weights that the layer had, or that `prune` took away.
        format: label of its format, such as `int4/64`; None where it is not quantized.
        rounding: how its codes were chosen.
        weight_sqnr_db: signal to quantization noise of its weight, in dB.
        output_sqnr_db: the same of its output, estimated from calibration statistics.
        activations: `int8` where its input is rounded too.
        reason: why it is not quantized.
        sparsity: share of its weights that are zero, where a step set some to zero.
    """

    kind: str
    parameters: int
    format: str | None = None
    rounding: str = "nearest"
    bits_per_weight: float | None = None
    weight_sqnr_db: float | None = None
    output_sqnr_db: float | None = None
    activations: str | None = None
    reason: str = ""
    sparsity: float | None = None

    @property
    def status(self) -> LayerStatus:
        if self.format is not None:
            return LayerStatus.QUANTIZED
        if self.kind in _PRUNED_KINDS:
            return _PRUNED_KINDS[self.kind]
        return LayerStatus.KEPT if self.sparsity is None else LayerStatus.SPARSE


class ComponentEntry(_Entry):
    """What became of one component.

    Args:
        steps: the steps of its recipe, each as kind -> parameters.
        bits_per_weight: stored bits of all its tensors over its parameters.
        parameters_of_packed: stored tensor -> parameters it stands for, where that is not its number of elements.
        replaced_by: model and files that `replace_component` took it from.
        fused_loras: path, weight and SHA-256 of each LoRA that was fused into it.
        recovery: facts of its training, as `recover` reports them.
        graphs: folder -> what each graph pass did, for ONNX.
    """

    class_name: str
    library: str
    steps: list[dict[str, dict[str, Any]]] = []
    parameters: BeforeAndAfter
    weights_bytes: BeforeAndAfter
    bits_per_weight: float = 0.0
    parameters_of_packed: dict[str, int] = {}
    layers: dict[str, LayerEntry] = {}
    replaced_by: dict[str, Any] | None = None
    fused_loras: list[dict[str, Any]] | None = None
    recovery: dict[str, Any] | None = None
    graphs: dict[str, list[dict[str, Any]]] | None = None


class SourceEntry(_Entry):
    """The model that the artifact was made of. Options are those given to `open_source`."""

    name: str
    kind: str = ""
    hub_id: str | None = None
    options: dict[str, Any] = {}


class FileEntry(_Entry):
    """Size and hexadecimal SHA-256 of one file of the artifact."""

    size_bytes: int
    sha256: str


class Manifest(_Entry):
    """What `sdcompress.json` says of an artifact.

    Args:
        sdcompress: the version that wrote it.
        recipe: the recipe with every default written out.
        converted: what it was converted to and from, where `convert` wrote it.
        versions: package -> version that was installed.
        replaced_parts: part without weights -> its class before and after.
        activation_ranges: component -> layer -> calibrated ranges.
        files: path in the folder -> size and hash, of every file but the manifest itself.
    """

    schema_version: int = MANIFEST_SCHEMA
    sdcompress: str = ""
    source: SourceEntry
    recipe: dict[str, Any] = {}
    pipeline_class: str = ""
    converted: dict[str, str] | None = None
    versions: dict[str, str] = {}
    components: dict[str, ComponentEntry] = {}
    replaced_parts: dict[str, dict[str, str]] | None = None
    activation_ranges: dict[str, Any] | None = None
    files: dict[str, FileEntry] = {}

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size_bytes for entry in self.files.values())


def is_artifact(folder: Path | None) -> bool:
    """Return whether the folder has a manifest."""
    return folder is not None and (folder / MANIFEST_NAME).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the artifact in `folder`.

    Raises:
        ArtifactError: the folder has none, or it cannot be read, or a later sdcompress wrote it.
    """
    try:
        return Manifest.model_validate(read_manifest_json(folder))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{folder / MANIFEST_NAME}: {where}: {first['msg']}; compress the model again") from None


def read_manifest_json(folder: Path) -> dict[str, Any]:
    """Return the manifest as the JSON object that it is, so that it can be written again as it was.

    Raises:
        ArtifactError: as `read_manifest`.
    """
    file = folder / MANIFEST_NAME
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{folder}: is no artifact of sdcompress (it has no {MANIFEST_NAME})") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file}: cannot be read ({error}); compress the model again") from None
    if not isinstance(manifest, dict):
        raise ArtifactError(f"{file}: is not a JSON object; compress the model again")
    if manifest.get("schema_version", 0) > MANIFEST_SCHEMA:
        raise ArtifactError(f"{file}: is of a later sdcompress; install a newer version")
    return manifest


def made_with(folder: Path | None) -> dict[str, Any]:
    """Return what a report says of how the pipeline was made: `recipe`, and `recovery` by component.

    Empty for a pipeline that is no artifact.
    """
    if folder is None or not is_artifact(folder):
        return {}
    manifest = read_manifest(folder)
    recovery = {name: entry.recovery for name, entry in manifest.components.items() if entry.recovery}
    return {"recipe": manifest.recipe, **({"recovery": recovery} if recovery else {})}
