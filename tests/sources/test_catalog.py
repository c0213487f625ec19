"""The catalog against the real classes, the published figures, and the published configs."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from benchmarks import build_catalog
from benchmarks.shape_tree_writer import compact, difference
from sdcompress.sources import catalog
from sdcompress.sources.catalog.shape_tree import expand, overlay
from sdcompress.sources.opening import open_source
from sdcompress.sources.source import is_buffer
from sdcompress.sources.spec import ComponentSpec, parameters_by_kind

ROOT = Path(__file__).resolve().parents[2]

CONFIGS = ROOT.parent / "shared" / "reference" / "models"
COMPONENT_FILES = sorted(file.stem for file in (catalog.FOLDER / "components").glob("*.json"))

# Published figures: parameters, and the share of them (%) in the weights of linear, 3x3, 1x1 and embedding layers.
PUBLISHED = [
    ("sd15", "unet", 859_520_964, {"linear": 31.4, "conv3x3": 62.9, "conv1x1": 5.6}),
    ("sd15", "text_encoder", 123_060_480, {"linear": 69.0, "embedding": 30.9}),
    ("sd15", "vae", 83_653_863, {"linear": 2.5, "conv3x3": 97.0, "conv1x1": 0.4}),
    ("sd15", "safety_checker", 303_981_588, {"linear": 99.6}),
    ("sd21", "unet", 865_910_724, {"linear": 34.8, "conv3x3": 62.5, "conv1x1": 2.7}),
    ("sd21", "text_encoder", 340_387_840, {"linear": 85.0, "embedding": 14.9}),
    ("sdxl", "unet", 2_567_463_684, {"linear": 87.0, "conv3x3": 12.5, "conv1x1": 0.5}),
    ("sdxl", "text_encoder_2", 694_659_840, {"linear": 90.8, "embedding": 9.1}),
    ("sd3-medium", "transformer", 2_028_328_000, {"linear": 99.9}),
    ("sd3-medium", "text_encoder_3", 4_762_310_656, {"linear": 97.2, "embedding": 2.8}),
    ("flux-schnell", "transformer", 11_891_178_560, {"linear": 100.0}),
]
# In no published table that was at hand: what the real class has with the described config.
PUBLISHED += [
    ("sdxl-refiner", "unet", 2_259_526_660, {}),
    ("sdxl-turbo", "unet", 2_567_463_684, {}),
    ("flux-dev", "transformer", 11_901_408_320, {}),
]


def component(model: str, part: str) -> ComponentSpec:
    return open_source(model).components[part]


def without_wrappers(named: Mapping[str, Any]) -> dict[str, Any]:
    """The same under the names of transformers 5, whose CLIP modules lost a level that files and 4.x still have."""
    if int(version("transformers").split(".")[0]) < 5:
        return dict(named)
    return {re.sub(r"(text|vision)_model\.", "", name): value for name, value in named.items()}


@pytest.mark.parametrize(("model", "part", "parameters", "shares"), PUBLISHED)
def test_published_figures(model: str, part: str, parameters: int, shares: dict[str, float]) -> None:
    spec = component(model, part)
    assert spec.parameters == parameters
    counts = parameters_by_kind(spec)
    # The table rounds or cuts to a tenth; both are within a tenth of the exact share.
    assert {kind: 100 * counts[kind] / parameters for kind in shares} == pytest.approx(shares, abs=0.1)


@pytest.mark.parametrize("file", COMPONENT_FILES)
def test_component_equals_the_real_class(file: str) -> None:
    users = [(entry, part) for entry in map(catalog.load_entry, catalog.names())
             for part, used in entry.components.items() if used == file]  # fmt: skip
    assert users, "no entry uses this component"
    entry, part = users[0]
    library, class_name = entry.model_index[part]
    spec = catalog.open_component(file, part, library)
    assert spec.class_name == class_name
    model = build_catalog.build_on_meta(library, class_name, dict(spec.config))
    shapes = {tensor: spec.tensors[tensor].shape for tensor in spec.tensors}
    assert without_wrappers(shapes) == without_wrappers(build_catalog.stored_shapes(model))
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    persistent = without_wrappers(shapes).keys() - without_wrappers(dict(model.named_parameters())).keys()
    assert {name for name in spec.tensors if is_buffer(name)} == persistent


def test_buffers_are_stored_but_are_no_parameters() -> None:
    table = component("sd3-medium", "transformer").tensors["pos_embed.pos_embed"]
    assert (table.shape, table.parameters) == ((1, 192 * 192, 1536), 0)


def test_every_entry_names_the_classes_of_its_components() -> None:
    assert catalog.names() == [
        "flux-dev", "flux-schnell", "pixart-sigma", "sana", "sd14", "sd15", "sd21", "sd3-medium", "sdxl",
        "sdxl-refiner", "sdxl-turbo",
    ]  # fmt: skip
    for name in catalog.names():
        source = open_source(name)
        assert (source.kind, source.name) == ("catalog", name)
        assert "float16" in source.notes[0]
        for part, spec in source.components.items():
            assert source.model_index[part] == [spec.library, spec.class_name]


def test_find_knows_names_aliases_and_hub_ids_in_any_case() -> None:
    for name, wanted in {
        "SD15": "sd15",
        "runwayml/stable-diffusion-v1-5": "sd15",
        "compvis/Stable-Diffusion-v1-4": "sd14",
        "black-forest-labs/FLUX.1-dev": "flux-dev",
        "FLUX.1-schnell": "flux-schnell",
        "sd3": "sd3-medium",
    }.items():
        entry = catalog.find(name)
        assert entry is not None
        assert entry.name == wanted
    assert catalog.find("sd") is None
    assert catalog.find("nobody/nothing") is None


def test_no_name_means_two_entries() -> None:
    entries = [catalog.load_entry(name) for name in catalog.names()]
    known = [name.casefold() for entry in entries for name in (entry.name, entry.hub_id, *entry.aliases)]
    assert len(known) == len(set(known))


def test_shape_trees_write_repetitions_once_and_expand_to_the_same() -> None:
    layer = {"attention.weight": (64, 64), "attention.bias": (64,), "up.weight": (256, 64), "down.weight": (64, 256)}
    shapes = {f"{tower}.{i}.{name}": shape for tower in ("a", "b") for i in range(12) for name, shape in layer.items()}
    tree = compact(shapes)
    assert list(tree["a"]) == ["0-11"] and tree["b"] == "=a"
    assert expand(tree) == shapes
    draw = random.Random(0)
    names = ["a", "b.0.weight", "b.0.bias", "b.1.weight", "b.1.bias", "b.2.weight", "c.10.x.y", "c.11.x.y", "c.13.x.y"]
    for _ in range(200):
        shapes = {name: (draw.choice([2, 3]),) * draw.choice([1, 2]) for name in draw.sample(names, draw.randint(1, 9))}
        assert expand(compact(shapes)) == shapes


def test_difference_is_what_overlay_adds() -> None:
    base = {"x": {"y": [1], "z": "same"}, "w": 1}
    wanted = {"x": {"y": [2], "z": "same", "new": {"n": [3]}}, "w": 1}
    changes = difference(base, wanted)
    assert changes == {"x": {"y": [2], "new": {"n": [3]}}}
    assert overlay(base, changes) == wanted
    with pytest.raises(ValueError, match="take away"):
        difference(wanted, base)


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="the published configs are not beside this repository")
def test_catalog_is_what_the_script_writes() -> None:
    for name in catalog.names():
        written = json.loads((catalog.FOLDER / f"{name}.json").read_text())
        if base := written.pop("extends", None):
            written = overlay(json.loads((catalog.FOLDER / f"{base}.json").read_text()), written)
        assert written == build_catalog.build_entry(name, CONFIGS)
    for file, (pipeline, part, _) in build_catalog.PUBLISHED.items():
        content = catalog.component_content(file)
        published = build_catalog.read_json(CONFIGS / pipeline / part / "config.json")
        if file == "safety-checker":  # its nested configs keep only what the class reads
            assert content["config"]["vision_config"].items() <= published["vision_config"].items()
        else:
            assert content["config"] == build_catalog.architecture_config(published)
