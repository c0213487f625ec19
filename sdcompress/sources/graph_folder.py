"""Folders whose components are graphs (ONNX, OpenVINO): their weights, and what sdcompress says of them in metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sdcompress.errors import SourceError
from sdcompress.sources.component_folder import read_json, small_files
from sdcompress.sources.source import Format, Kind, Source, component_entries, pipeline_class_of
from sdcompress.sources.spec import ComponentSpec, TensorSpec

METADATA_KEY = "sdcompress"
VAE_GRAPHS = ("vae_encoder", "vae_decoder")
# The dtypes of weights. Other integers of a graph are shapes and axes.
_WEIGHT_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8", "U8", "I4", "U4"})


@dataclass(frozen=True)
class Graph:
    """The weights of one or several graphs.

    Attributes:
        tensors: name of a weight -> its spec.
        files: the files that hold the graphs and the weights.
        counted: whether the graphs say how many parameters each weight stands for.
    """

    tensors: Mapping[str, TensorSpec]
    files: tuple[Path, ...]
    counted: bool


def open_graph_folder(
    path: Path,
    name: str,
    kind: Kind,
    hub_id: str | None,
    form: Format,
    model_file: str,
    read_graph: Callable[[Path], Graph],
) -> Source:
    """Return the pipeline in a folder of graphs. Its `vae_encoder` and `vae_decoder` are one component, `vae`.

    Args:
        path: the folder.
        name: name of the source.
        kind: kind of the source.
        hub_id: the repository on the hub that the folder is a copy of.
        form: format of the weights.
        model_file: name of the file with the graph in each component's folder.
        read_graph: function that reads such a file.

    Raises:
        SourceError: files are missing or damaged.
    """
    model_index = read_json(path / "model_index.json", missing=f"{path}: has no model_index.json")
    components: dict[str, ComponentSpec] = {}
    folders: list[Path] = []
    weights: list[Path] = []
    uncounted: list[str] = []
    for component, (library, class_name) in component_entries(model_index).items():
        graphs = graph_folders(path, component, model_file)
        if not graphs and not (path / component).is_dir():
            raise SourceError(
                f"{path / component}: missing, though model_index.json lists {component} ({class_name}); export it "
                f"too, or write [null, null] for it in model_index.json"
            )
        folders += graphs or (path / component,)
        if not graphs:
            if (path / component / "config.json").is_file():
                raise SourceError(
                    f"{path / component}: has a config.json but no {model_file}; export or download it again"
                )
            continue
        missing = f"{graphs[-1]}: has a {model_file} but no config.json; export or download it again"
        config = read_json(graphs[-1] / "config.json", missing=missing)
        read = _joined({folder.name: read_graph(folder / model_file) for folder in graphs})
        pipeline_class = pipeline_class_of(model_index)
        components[component] = ComponentSpec(component, library, class_name, config, read.tensors, pipeline_class)
        weights += read.files
        if not read.counted:
            uncounted.append(component)
    note = (
        f"{', '.join(uncounted)}: not exported by sdcompress, so every float and small integer of the graph counts "
        f"as a parameter, scales and zero points too"
    )
    return Source(
        name,
        kind,
        model_index,
        components,
        path,
        hub_id,
        other_files=tuple(small_files(path, folders)),
        notes=(note,) if uncounted else (),
        format=form,
        onnx_files=tuple(weights),
    )


def graph_folders(folder: Path, component: str, model_file: str) -> tuple[Path, ...]:
    """Return the folders with the component's graphs: up to two of a VAE, up to one of any other component."""
    names = VAE_GRAPHS if component == "vae" else (component,)
    return tuple(folder / name for name in names if (folder / name / model_file).is_file())


def parse_counts(file: Path, text: str | None) -> dict[str, int] | None:
    """Return weight -> number of parameters it stands for; None if sdcompress did not export the graph.

    Args:
        file: the file with the graph, for errors.
        text: its metadata entry METADATA_KEY, which is JSON.

    Raises:
        SourceError: the entry is malformed.
    """
    if text is None:
        return None
    try:
        return {str(name): int(count) for name, count in json.loads(text)["parameters"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SourceError(f"{file}: its metadata entry {METADATA_KEY} is malformed; make the file again") from None


def choose_weights(
    file: Path, constants: Mapping[str, TensorSpec], counts: Mapping[str, int] | None
) -> dict[str, TensorSpec]:
    """Return those of a graph's constants that are weights: those in `counts`, or all of a dtype that weights have.

    Raises:
        SourceError: the graph lacks a constant that is in `counts`.
    """
    if counts is None:
        return {name: spec for name, spec in constants.items() if spec.dtype in _WEIGHT_DTYPES}
    lacking = sorted(set(counts) - set(constants))
    if lacking:
        raise SourceError(f"{file}: its metadata lists {lacking[0]}, which it does not hold; make the file again")
    return {
        name: TensorSpec(spec.shape, spec.dtype, counts[name]) for name, spec in constants.items() if name in counts
    }


def _joined(graphs: Mapping[str, Graph]) -> Graph:
    """Return the graphs as one. A name that is in several gets the folder's name before it."""
    names = [name for graph in graphs.values() for name in graph.tensors]
    shared = {name for name in names if names.count(name) > 1}
    tensors = {
        f"{folder}.{name}" if name in shared else name: spec
        for folder, graph in graphs.items()
        for name, spec in graph.tensors.items()
    }
    files = tuple(file for graph in graphs.values() for file in graph.files)
    return Graph(tensors, files, all(graph.counted for graph in graphs.values()))
