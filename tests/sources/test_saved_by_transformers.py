"""One recipe fits pipelines saved by transformers 4 and 5; they and their artifacts open under either."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from saved_by_transformers import WEIGHTS, rewrite
from tiny_parts import gemma_tokenizer, t5_tokenizer
from torch import nn

from sdcompress.backends.open_pipeline import open_pipeline
from sdcompress.backends.small_parts import open_small_part
from sdcompress.backends.torch.source_parts import open_component
from sdcompress.errors import SourceError
from sdcompress.execution.execute import execute
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import load_recipe, parse_recipe, shipped_recipes
from sdcompress.sources.opening import open_source
from sdcompress.sources.portable_parts import portable_part
from sdcompress.sources.tensor_names import canonical_name, name_in_model

pytestmark = pytest.mark.smoke
RECIPE = """
schema_version: 1
description: layers of the text encoder by name, and calibration, which reads prompts with the tokenizer
components:
  text_encoder:
    - quantize:
        format: int8
        overrides:
          - {layers: ["*.embeddings"], format: uint4}
          - {layers: [text_model.encoder.layers.1.mlp.fc2], format: int8, rounding: gptq}
calibration: {prompts: [a cat], num_inference_steps: 1}
"""


ONNX = """
schema_version: 1
description: in ONNX, for one size; the embeddings by name
target: onnx
components:
  text_encoder:
    - quantize: {format: int8, exclude: ["*.embeddings"]}
    - export: {static_shapes: {height: 16, width: 16, sequence: 16, guidance: true}}
  "*":
    - quantize: {format: int8}
    - export: {static_shapes: {height: 16, width: 16, sequence: 16, guidance: true}}
"""


@pytest.fixture(scope="module")
def saved(nano_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Version of transformers -> the nano pipeline as that version saves it."""
    folder = tmp_path_factory.mktemp("saved")
    return {version: rewrite(nano_folder, version, folder / str(version)) for version in (4, 5)}


def draw(pipeline: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipeline("a red cat", num_inference_steps=2, generator=generator, output_type="pt").images


def test_the_folders_differ(saved: dict[int, Path]) -> None:
    names = {version: sorted(load_file(folder / WEIGHTS)) for version, folder in saved.items()}
    assert names[4] == [f"text_model.{name}" for name in names[5]]
    assert (saved[4] / "tokenizer/vocab.json").is_file() and not (saved[5] / "tokenizer/vocab.json").exists()


def test_they_are_one_source_and_draw_one_picture(saved: dict[int, Path], nano_folder: Path) -> None:
    sources = {version: open_source(str(folder)) for version, folder in saved.items()}
    assert sources[4].components == sources[5].components
    pictures = [draw(open_pipeline(folder, device="cpu")) for folder in (nano_folder, *saved.values())]
    assert torch.equal(pictures[0], pictures[1]) and torch.equal(pictures[0], pictures[2])


def test_one_recipe_gives_both_the_same_artifact_which_stock_diffusers_opens(
    saved: dict[int, Path], tmp_path: Path
) -> None:
    from diffusers import DiffusionPipeline

    pictures = []
    for version, folder in saved.items():
        execute(make_plan(parse_recipe(RECIPE, "recipe"), open_source(str(folder))), tmp_path / str(version))
        pictures.append(draw(DiffusionPipeline.from_pretrained(tmp_path / str(version))))
        assert torch.equal(pictures[-1], draw(open_pipeline(tmp_path / str(version), device="cpu")))
    assert torch.equal(*pictures)
    assert (tmp_path / "4" / WEIGHTS).read_bytes() == (tmp_path / "5" / WEIGHTS).read_bytes()
    layers = json.loads((tmp_path / "5/text_encoder/config.json").read_text())["quantization_config"]["layers"]
    assert layers["text_model.embeddings.token_embedding"].startswith("uint4")


def test_shipped_recipes_fit_both(saved: dict[int, Path]) -> None:
    sources = [open_source(str(folder)) for folder in saved.values()]
    for name in shipped_recipes():
        plans = [make_plan(load_recipe(name), source) for source in sources]
        assert plans[0].components_after == plans[1].components_after, name


def test_an_onnx_job(saved: dict[int, Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install 'sdcompress[onnx]')")
    original = draw(open_pipeline(saved[5], device="cpu"))
    execute(make_plan(parse_recipe(ONNX, "recipe"), open_source(str(saved[5]))), tmp_path / "out")
    picture = torch.as_tensor(draw(open_pipeline(tmp_path / "out", device="cpu")))
    # int8 weights alone, as in the contracts of the families: 40 dB.
    assert float((picture - original).pow(2).mean().sqrt()) < 0.01


def test_a_folder_of_transformers_4_stays_as_it_is(saved: dict[int, Path]) -> None:
    source = open_source(str(saved[4]))
    assert not source.changed_files
    assert source.model_index == json.loads((saved[4] / "model_index.json").read_text())


@pytest.mark.parametrize(
    ("class_name", "stored", "canonical"),
    [
        ("CLIPTextModel", "encoder.layers.0.mlp.fc1.codes", "text_model.encoder.layers.0.mlp.fc1.codes"),
        ("CLIPTextModel", "text_model.final_layer_norm.bias", "text_model.final_layer_norm.bias"),
        ("CLIPTextModelWithProjection", "text_projection.weight", "text_projection.weight"),
        ("StableDiffusionSafetyChecker", "vision_model.encoder.a", "vision_model.vision_model.encoder.a"),
        ("StableDiffusionSafetyChecker", "vision_model.vision_model.encoder.a", "vision_model.vision_model.encoder.a"),
        ("StableDiffusionSafetyChecker", "concept_embeds", "concept_embeds"),
        ("T5EncoderModel", "encoder.block.0.layer.0.SelfAttention.q", "encoder.block.0.layer.0.SelfAttention.q"),
        ("AutoencoderKL", "a.attentions.0.query.weight", "a.attentions.0.to_q.weight"),
    ],
)
def test_canonical_names(class_name: str, stored: str, canonical: str) -> None:
    assert canonical_name(class_name, stored) == canonical


def test_names_in_models_with_and_without_the_level() -> None:
    inner = nn.ModuleDict({"fc": nn.Linear(2, 2)})
    assert name_in_model(nn.ModuleDict({"text_model": inner}), "text_model.fc.weight") == "text_model.fc.weight"
    assert name_in_model(inner, "text_model.fc.weight") == "fc.weight"
    assert name_in_model(inner, "text_model.other.weight") is None


@pytest.mark.parametrize("class_name", ["CLIPTokenizer", "T5Tokenizer", "GemmaTokenizer"])
def test_a_tokenizer_with_its_vocabulary_keeps_its_class(class_name: str) -> None:
    for vocabulary in ("vocab.json", "spiece.model", "tokenizer.model"):
        assert portable_part(class_name, ["tokenizer.json", vocabulary], lambda name: b"{}") == (class_name, {})
    assert portable_part(class_name, ["tokenizer.json"], lambda name: b"{}") == (f"{class_name}Fast", {})


def test_calibration_with_a_broken_tokenizer_leaves_nothing(saved: dict[int, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved[4], tmp_path / "model"))
    (folder / "tokenizer/vocab.json").write_text("{")
    with pytest.raises(SourceError, match="its tokenizers or scheduler cannot be opened"):
        execute(make_plan(parse_recipe(RECIPE, "recipe"), open_source(str(folder))), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("content", [b"{", b"[]"])
def test_broken_settings_of_a_tokenizer(content: bytes) -> None:
    with pytest.raises(SourceError, match=r"tokenizer_config.json"):
        portable_part("CLIPTokenizer", ["tokenizer.json", "tokenizer_config.json"], lambda name: content)


@pytest.mark.parametrize(
    ("make", "class_name"), [(t5_tokenizer, "T5Tokenizer"), (gemma_tokenizer, "TokenizersBackend")]
)
def test_other_tokenizers_of_transformers_5_open(make: Any, class_name: str, tmp_path: Path) -> None:
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    settings = {name: value for name, value in json.loads(file.read_text()).items() if name != "added_tokens_decoder"}
    settings |= {"tokenizer_class": class_name, "backend": "tokenizers", "extra_special_tokens": ["</s>"]}
    file.write_text(json.dumps(settings))
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)  # which transformers 5 does not write
    opened = open_small_part(tmp_path, "transformers", class_name)
    assert opened("a red cat").input_ids == tokenizer("a red cat").input_ids


@torch.no_grad()  # with gradients other kernels run
def test_t5s_embedding_is_one_tensor_in_both_places(tmp_path: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    config = {"vocab_size": 8, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    model = T5EncoderModel(T5Config(**config))
    model.save_pretrained(tmp_path / "text_encoder")
    index = {"_class_name": "FluxPipeline", "text_encoder": ["transformers", "T5EncoderModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    opened = open_component(open_source(str(tmp_path)), "text_encoder", torch.device("cpu"))
    assert opened.shared.weight is opened.encoder.embed_tokens.weight
    ids = torch.tensor([[3, 1, 2]])
    assert torch.equal(opened(ids).last_hidden_state, model.eval()(ids).last_hidden_state)
