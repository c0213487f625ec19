"""Compression: plans, artifacts, their check, and their conversion for other runtimes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdcompress.api.models import SourceOptions, source_of
from sdcompress.errors import ArtifactError, UserError
from sdcompress.planning.plan import make_plan as plan_recipe
from sdcompress.planning.recipe import Recipe, load_recipe
from sdcompress.progress.choice import ProgressOption, listening
from sdcompress.sources.opening import open_source, with_weights

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sdcompress.files.manifest import Manifest
    from sdcompress.planning.plan import Plan
    from sdcompress.sources.source import Source


@dataclass(frozen=True)
class Artifact:
    """A compressed pipeline on disk.

    Args:
        path: its folder.
        manifest: what `sdcompress.json` in the folder says.
    """

    path: Path
    manifest: Manifest

    @property
    def size_bytes(self) -> int:
        """Bytes of all files that the manifest lists."""
        return sum(file.size_bytes for file in self.manifest.files.values())


@dataclass(frozen=True)
class Conversion:
    """What `convert` wrote.

    Args:
        path: the GGUF file, or the OpenVINO folder.
        facts: sizes, types and reasons, as the JSON beside the result has them.
    """

    path: Path
    facts: dict[str, Any]


def make_plan(
    model: str | Path | Source,
    recipe: str | Path | Recipe,
    *,
    progress: ProgressOption = "auto",
    **source_options: Unpack[SourceOptions],
) -> Plan:
    """Return what a recipe would do to a model: sizes, layers left alone and why, memory, what opens the result.

    No weight is read, except by `prune: {auto: 30%}`, which has to measure the original once.

    Args:
        model: what `open_source` takes, or its result.
        recipe: the name of a shipped recipe, the path of a YAML file, or a `Recipe`.
        progress: who is told about measuring; see `sdcompress.progress.choice.listening`.
        source_options: how the model is read.

    Raises:
        RecipeError: everything in the recipe that cannot be done with this model, by YAML path.
        SourceError: there is no such model, or it is not whole.

    Examples:
        >>> plan = make_plan("tiny-sd", "int8")
        >>> plan.after("unet").weights_bytes < plan.source.components["unet"].weights_bytes
        True
    """
    recipe, source = recipe_of(recipe), source_of(model, source_options)
    if source.path is None and recipe.measures:
        source = with_weights(source)
    with listening(progress) as listener:
        return plan_recipe(recipe, source, listener)


def compress(
    model: str | Path | Source,
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    force: bool = False,
    progress: ProgressOption = "auto",
    **source_options: Unpack[SourceOptions],
) -> Artifact | None:
    """Carry out a recipe and write the compressed pipeline to a folder, which appears when it is whole.

    Args:
        model: what `open_source` takes, or its result. Weights on the hub are fetched.
        recipe: the name of a shipped recipe, the path of a YAML file, or a `Recipe`.
        out: the folder to write. An interrupted run leaves `OUT.partial` beside it.
        resume: continue such an interrupted run.
        force: replace an earlier artifact at `out`, or begin an interrupted run anew.
        progress: who is told how far it is; see `sdcompress.progress.choice.listening`.
        source_options: how the model is read.

    Returns:
        The artifact; None in the further processes of an `accelerate launch`, which only help to train.

    Raises:
        RecipeError: the recipe cannot be carried out with this model.
        ArtifactError: something is in the way of the output, or the disk is full.
        SourceError: the model's weights cannot be read.
        TrainingError: training went astray; its last checkpoint is kept for `resume`.

    Examples:
        >>> import tempfile
        >>> artifact = compress("tiny-sd", "int8", Path(tempfile.mkdtemp()) / "int8", progress=None)
        >>> artifact.size_bytes < open_source("tiny-sd").size_bytes
        True
    """
    from sdcompress.execution.execute import execute
    from sdcompress.execution.worker_rank import is_worker_rank, train_as_worker
    from sdcompress.files.artifact import check_output

    out = Path(out)
    if not is_worker_rank():
        check_output(out, resume=resume, force=force)
    with listening(progress) as listener:
        plan = make_plan(model, recipe, progress=listener, **source_options)
        if plan.source.path is None:
            plan = plan_recipe(plan.recipe, with_weights(plan.source))
        if is_worker_rank():
            train_as_worker(plan, out, resume=resume)
            return None
        return Artifact(out, execute(plan, out, resume=resume, force=force, listener=listener))


def verify(artifact: str | Path, *, load: bool = True, progress: ProgressOption = "auto") -> Artifact:
    """Check an artifact's files, hashes and shapes, and that it opens.

    Args:
        artifact: a folder that sdcompress wrote.
        load: also open the pipeline.
        progress: who is told how far the hashing is; see `sdcompress.progress.choice.listening`.

    Returns:
        The artifact, if nothing is wrong with it.

    Raises:
        ArtifactError: everything that is wrong with it.

    Examples:
        >>> verify("./tiny-sd-int8").size_bytes  # doctest: +SKIP
        8123456
    """
    from sdcompress.execution.verify import verify as find_problems
    from sdcompress.files.manifest import read_manifest

    artifact = Path(artifact)
    manifest = read_manifest(artifact)
    with listening(progress) as listener:
        problems = find_problems(artifact, load=load, listener=listener)
    if problems:
        raise ArtifactError(problems)
    return Artifact(artifact, manifest)


def convert(
    model: str | Path | Source,
    to: Literal["gguf", "openvino"],
    out: str | Path,
    *,
    type: str | None = None,
    keys: str | None = None,
    rest: str | None = None,
    keep_sensitive: bool | None = None,
    force: bool = False,
    progress: ProgressOption = "auto",
    **source_options: Unpack[SourceOptions],
) -> Conversion:
    """Write a pipeline's denoiser as a GGUF file, or an ONNX folder as an OpenVINO folder.

    Args:
        model: gguf: a pipeline for torch in full precision. openvino: an ONNX folder.
        to: the format to write.
        out: gguf: the file; openvino: the folder. It appears when it is whole.
        type: gguf: f16, bf16, q8_0 (default), q5_1, q5_0, q4_1 or q4_0.
        keys: gguf: names of tensors, `original` (the default where they are known) or `diffusers`.
        rest: gguf: f16 (default) or f32, for tensors of several dimensions that are not quantized.
        keep_sensitive: gguf: whether types of 4 and 5 bits spare the sensitive layers (default).
        force: replace what is there.
        progress: who is told how far it is; see `sdcompress.progress.choice.listening`.
        source_options: how the model is read.

    Raises:
        UserError: an option is unknown, or is for the other format.
        ArtifactError: something is in the way of the output.
        SourceError: the model cannot be converted.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "unet.gguf"
        >>> convert("tiny-sd", "gguf", file, type="q8_0", progress=None).facts["type"]  # doctest: +SKIP
        'q8_0'
    """
    out = Path(out)
    given = {"type": type, "keys": keys, "rest": rest, "keep_sensitive": keep_sensitive}
    if to == "openvino":
        for option, value in given.items():
            if value is not None:
                raise UserError(f"{option}: is for gguf; an OpenVINO folder has the precision of the ONNX folder")
        return Conversion(out, _write_openvino(source_of(model, source_options), out, force, progress))
    if to != "gguf":
        raise UserError(f"{to}: is no format that can be written; use gguf or openvino")
    from sdcompress.backends.gguf.convert import check_plan, write_gguf
    from sdcompress.backends.gguf.layouts import KEYS
    from sdcompress.backends.gguf.types import REST, TYPES

    for option, value, known in (("type", type, tuple(TYPES)), ("keys", keys, KEYS), ("rest", rest, REST)):
        if value is not None and value not in known:
            raise UserError(f"{option} {value}: use one of {', '.join(known)}")
    choice: dict[str, Any] = {
        "wanted": type or "q8_0", "keys": keys, "rest": rest or "f16",
        "keep_sensitive": keep_sensitive is not False, "force": force,
    }  # fmt: skip
    source = source_of(model, source_options)
    check_plan(source, out, **choice)  # before gigabytes are downloaded
    with listening(progress) as listener:
        return Conversion(out, write_gguf(with_weights(source), out, **choice, listener=listener))


def _write_openvino(source: Source, out: Path, force: bool, progress: ProgressOption) -> dict[str, Any]:
    from sdcompress.backends.openvino.convert import check_conversion, write_openvino

    check_conversion(source, out, force)  # before a bar is drawn
    with listening(progress) as listener:
        return write_openvino(source, out, force=force, listener=listener).to_json()


def recipe_of(recipe: str | Path | Recipe) -> Recipe:
    """Return the recipe that a function's `recipe` argument means: a name, the path of a file, or a `Recipe`."""
    return recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe))


def made_of(folder: Path, model: str | Path, recipe: Recipe, source_options: SourceOptions) -> Artifact:
    """Return the artifact in the folder. Raise ArtifactError if it was made of another model or recipe."""
    from sdcompress.files.manifest import read_manifest

    manifest = read_manifest(folder)
    # Gates do not change the artifact: with others it is the same, and only judged anew.
    made, wanted = ({**each, "gates": []} for each in (manifest.recipe, recipe.model_dump(mode="json")))
    source, made_from = open_source(str(model), **source_options), manifest.source
    if (made_from.name, made_from.options, made) != (source.name, source.given_options, wanted):
        raise ArtifactError(f"{folder}: was made of another model or recipe; choose another --out, or --force")
    return Artifact(folder, manifest)
