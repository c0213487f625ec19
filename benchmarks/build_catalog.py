"""Write sdcompress/sources/catalog/*.json from a folder of published configs.

Shapes are those of the real classes on the meta device.

    python benchmarks/build_catalog.py ../shared/reference/models

The folder holds one folder per pipeline (`stable-diffusion-v1-5`, `FLUX.1-schnell`, ...) with model_index.json and the
config.json files as published. Some entries are not in it: Stable Diffusion 1.4, the SDXL refiner, SDXL-Turbo and
FLUX.1-dev are written below as differences from the published ones (`CHANGED`, `ENTRIES`), from their model cards;
PixArt-Sigma and Sana as their classes' defaults, which are those models, with what differs (`DEFAULTS`). All shapes are
those of the real classes. Configs lose only what says nothing about the architecture (where it was saved, by which
version, in which dtype).
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.shape_tree_writer import compact, difference
from sdcompress.sources import catalog
from sdcompress.sources.catalog.shape_tree import expand
from sdcompress.sources.empty_model import component_class, empty_model

SD15, SD21, SDXL = "stable-diffusion-v1-5", "stable-diffusion-2-1", "stable-diffusion-xl-base-1.0"
SD3, FLUX = "stable-diffusion-3-medium-diffusers", "FLUX.1-schnell"

# Component file -> (pipeline folder, part, the component file it extends).
PUBLISHED: dict[str, tuple[str, str, str | None]] = {
    "unet-sd1": (SD15, "unet", None),
    "unet-sd21": (SD21, "unet", "unet-sd1"),
    "unet-sdxl": (SDXL, "unet", None),
    "vae-sd1": (SD15, "vae", None),
    "vae-sd21": (SD21, "vae", "vae-sd1"),
    "vae-sdxl": (SDXL, "vae", "vae-sd1"),
    "vae-sd3": (SD3, "vae", None),
    "vae-flux": (FLUX, "vae", "vae-sd3"),
    "clip-l": (SD15, "text_encoder", None),
    "clip-h": (SD21, "text_encoder", None),
    "clip-l-projection": (SD3, "text_encoder", "clip-l"),
    "clip-bigg": (SDXL, "text_encoder_2", None),
    "t5-xxl": (SD3, "text_encoder_3", "t5-xxl-flux"),
    "t5-xxl-flux": (FLUX, "text_encoder_2", None),
    "safety-checker": (SD15, "safety_checker", None),
    "sd3-transformer": (SD3, "transformer", None),
    "flux-schnell-transformer": (FLUX, "transformer", None),
}

# Component file -> (the component file it starts from, its changed config fields, whether to store only the changes).
CHANGED: dict[str, tuple[str, dict[str, Any], bool]] = {
    "unet-sdxl-refiner": (
        "unet-sdxl",
        {
            "attention_head_dim": [6, 12, 24, 24],
            "block_out_channels": [384, 768, 1536, 1536],
            "cross_attention_dim": 1280,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "projection_class_embeddings_input_dim": 2560,
            "transformer_layers_per_block": 4,
        },
        False,
    ),
    "unet-sdxl-turbo": ("unet-sdxl", {"sample_size": 64}, True),
    "flux-dev-transformer": ("flux-schnell-transformer", {"guidance_embeds": True}, True),
}

# Component file -> (library, class, what is not as by default).
DEFAULTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "pixart-sigma-transformer": (
        "diffusers",
        "PixArtTransformer2DModel",
        {"caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False},
    ),
    "sana-transformer": ("diffusers", "SanaTransformer2DModel", {}),
    "dc-ae-f32c32": (
        "diffusers",
        "AutoencoderDC",
        {
            "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
            "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
            "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
            "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
            "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
            "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
            "downsample_block_type": "conv",
            "upsample_block_type": "interpolate",
            "scaling_factor": 0.41407,
        },
    ),
    "gemma2-2b": ("transformers", "Gemma2Model", {}),
}

SDXL_PARTS = {"text_encoder": "clip-l", "text_encoder_2": "clip-bigg", "unet": "unet-sdxl", "vae": "vae-sdxl"}
SD1_PARTS = {"text_encoder": "clip-l", "unet": "unet-sd1", "vae": "vae-sd1", "safety_checker": "safety-checker"}
FLUX_PARTS = {"text_encoder": "clip-l", "text_encoder_2": "t5-xxl-flux", "vae": "vae-flux"}
EULER_ANCESTRAL_TRAILING = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
SANA_SCHEDULER = {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 3.0,
                  "prediction_type": "flow_prediction", "algorithm_type": "dpmsolver++", "solver_order": 2}  # fmt: skip
PIXART_SCHEDULER = {"_class_name": "DPMSolverMultistepScheduler", "beta_start": 0.0001, "beta_end": 0.02,
                    "beta_schedule": "linear", "algorithm_type": "dpmsolver++", "solver_order": 2}  # fmt: skip
DESCRIBED = "class defaults of diffusers and transformers, and published descriptions"
FLUX_DEV_SCHEDULER = {"shift": 3.0, "use_dynamic_shifting": True}
AS_PUBLISHED = "published configs"

# Catalog name -> title, hub id, aliases, the folder it is read from, its components, differences from the folder.
ENTRIES: dict[str, dict[str, Any]] = {
    "sd14": {
        "title": "Stable Diffusion 1.4", "hub_id": "CompVis/stable-diffusion-v1-4", "folder": SD15,
        "aliases": ["sd1.4", "sd-1.4", "sd-v1-4", "stable-diffusion-v1-4", "stable-diffusion-1.4"],
        "components": SD1_PARTS, "provenance": "the same architecture and configs as Stable Diffusion 1.5",
    },
    "sd15": {
        "title": "Stable Diffusion 1.5", "hub_id": "stable-diffusion-v1-5/stable-diffusion-v1-5", "folder": SD15,
        "aliases": [
            "sd1.5", "sd-1.5", "sd-v1-5", "stable-diffusion-v1-5", "stable-diffusion-1.5",
            "runwayml/stable-diffusion-v1-5",
        ],
        "components": SD1_PARTS,
    },
    "sd21": {
        "title": "Stable Diffusion 2.1", "hub_id": "stabilityai/stable-diffusion-2-1", "folder": SD21,
        "aliases": ["sd2.1", "sd-2.1", "sd-v2-1", "stable-diffusion-2-1", "stable-diffusion-2.1"],
        "components": {"text_encoder": "clip-h", "unet": "unet-sd21", "vae": "vae-sd21"},
    },
    "sdxl": {
        "title": "Stable Diffusion XL 1.0", "hub_id": "stabilityai/stable-diffusion-xl-base-1.0", "folder": SDXL,
        "aliases": ["sdxl-base", "sdxl-1.0", "sd-xl", "stable-diffusion-xl", "stable-diffusion-xl-base-1.0"],
        "components": SDXL_PARTS,
    },
    "sdxl-refiner": {
        "title": "Stable Diffusion XL refiner 1.0", "hub_id": "stabilityai/stable-diffusion-xl-refiner-1.0",
        "folder": SDXL, "aliases": ["sdxl-refiner-1.0", "stable-diffusion-xl-refiner-1.0"],
        "components": {"text_encoder_2": "clip-bigg", "unet": "unet-sdxl-refiner", "vae": "vae-sdxl"},
        "model_index": {
            "_class_name": "StableDiffusionXLImg2ImgPipeline", "force_zeros_for_empty_prompt": False,
            "requires_aesthetics_score": True, "text_encoder": [None, None], "tokenizer": [None, None],
        },
        "provenance": "SDXL's published configs; the UNet's config from its published description",
    },
    "sdxl-turbo": {
        "title": "SDXL-Turbo", "hub_id": "stabilityai/sdxl-turbo", "folder": SDXL, "aliases": ["sd-xl-turbo"],
        "components": {**SDXL_PARTS, "unet": "unet-sdxl-turbo"}, "scheduler": EULER_ANCESTRAL_TRAILING,
        "provenance": "SDXL's published configs; sample size and scheduler from its published description",
    },
    "sd3-medium": {
        "title": "Stable Diffusion 3 medium", "hub_id": "stabilityai/stable-diffusion-3-medium-diffusers",
        "folder": SD3,
        "aliases": [
            "sd3", "sd-3", "stable-diffusion-3-medium", "stable-diffusion-3-medium-diffusers",
            "stabilityai/stable-diffusion-3-medium",
        ],
        "components": {
            "text_encoder": "clip-l-projection", "text_encoder_2": "clip-bigg", "text_encoder_3": "t5-xxl",
            "transformer": "sd3-transformer", "vae": "vae-sd3",
        },
    },
    "flux-dev": {
        "title": "FLUX.1-dev", "hub_id": "black-forest-labs/FLUX.1-dev", "folder": FLUX,
        "aliases": ["flux.1-dev", "flux1-dev"],
        "components": {**FLUX_PARTS, "transformer": "flux-dev-transformer"}, "scheduler": FLUX_DEV_SCHEDULER,
        "provenance": "FLUX.1-schnell's published configs; guidance embedding and scheduler from its model card",
    },
    "flux-schnell": {
        "title": "FLUX.1-schnell", "hub_id": "black-forest-labs/FLUX.1-schnell", "folder": FLUX,
        "aliases": ["flux.1-schnell", "flux1-schnell"],
        "components": {**FLUX_PARTS, "transformer": "flux-schnell-transformer"},
    },
    "pixart-sigma": {
        "title": "PixArt-Sigma XL 1024", "hub_id": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "folder": None,
        "aliases": ["pixart", "pixart-sigma-xl", "PixArt-Sigma-XL-2-1024-MS"],
        "components": {"text_encoder": "t5-xxl", "transformer": "pixart-sigma-transformer", "vae": "vae-sdxl"},
        "model_index": {
            "_class_name": "PixArtSigmaPipeline", "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "T5Tokenizer"], "transformer": ["diffusers", "PixArtTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "scheduler": PIXART_SCHEDULER, "provenance": DESCRIBED,
        "tokenizers": {"tokenizer": {"tokenizer_class": "T5Tokenizer", "model_max_length": 300, "pad_token": "<pad>"}},
    },
    "sana": {
        "title": "Sana 1.6B 1024", "hub_id": "Efficient-Large-Model/Sana_1600M_1024px_diffusers", "folder": None,
        "aliases": ["sana-1600m", "sana-1.6b"],
        "components": {"text_encoder": "gemma2-2b", "transformer": "sana-transformer", "vae": "dc-ae-f32c32"},
        "model_index": {
            "_class_name": "SanaPipeline", "text_encoder": ["transformers", "Gemma2Model"],
            "tokenizer": ["transformers", "GemmaTokenizerFast"], "transformer": ["diffusers", "SanaTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderDC"],
        },
        "scheduler": SANA_SCHEDULER, "provenance": DESCRIBED,
        "tokenizers": {
            "tokenizer": {"tokenizer_class": "GemmaTokenizerFast", "model_max_length": 300, "pad_token": "<pad>"}
        },
    },
}  # fmt: skip

# Catalog name -> the entry of which it stores only the differences.
EXTENDS = {"sd14": "sd15", "sdxl-turbo": "sdxl", "flux-dev": "flux-schnell"}

NOT_ARCHITECTURE = frozenset(
    {"_name_or_path", "_diffusers_version", "_commit_hash", "torch_dtype", "transformers_version", "text_config_dict",
     "vision_config_dict"}
)  # fmt: skip
FLUX_DEV_PROMPT_TOKENS = 512


def build_on_meta(library: str, class_name: str, config: dict[str, Any]) -> Any:
    """The real class built from `config` on the meta device, buffers too: shapes without memory."""
    import torch

    with torch.device("meta"):
        return empty_model(library, class_name, config)


def stored_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of what the model's file holds: parameters (tied ones once) and persistent buffers."""
    kept = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name in kept}


def architecture_config(config: dict[str, Any], config_class: Any = None) -> dict[str, Any]:
    """The fields of a config.json that say what to build; a nested config keeps only the fields its class names."""
    kept = {key: value for key, value in config.items() if key not in NOT_ARCHITECTURE}
    for key, nested in getattr(config_class, "sub_configs", {}).items():
        fields = {*inspect.signature(nested.__init__).parameters, "model_type"}
        kept[key] = {name: value for name, value in kept[key].items() if name in fields and value is not None}
    return kept


def build_components(folder: Path) -> dict[str, dict[str, Any]]:
    """Component file -> its content (class_name, config, tensors), nothing left to `extends`."""
    contents: dict[str, dict[str, Any]] = {}
    for file, (pipeline, part, _) in PUBLISHED.items():
        library, class_name = read_json(folder / pipeline / "model_index.json")[part]
        published = read_json(folder / pipeline / part / "config.json")
        config_class = getattr(component_class(library, class_name), "config_class", None)
        config = architecture_config(published, config_class)
        contents[file] = component_content(library, class_name, config)
    for file, (start, changes, _) in CHANGED.items():
        config = {**contents[start]["config"], **changes}
        contents[file] = component_content("diffusers", contents[start]["class_name"], config)
    for file, (library, class_name, changes) in DEFAULTS.items():
        contents[file] = component_content(library, class_name, default_config(library, class_name, changes))
    return contents


def component_content(library: str, class_name: str, config: dict[str, Any]) -> dict[str, Any]:
    """What a component file holds: class, config, and the shapes that the real class has with it."""
    tensors = compact(stored_shapes(build_on_meta(library, class_name, config)))
    return {"class_name": class_name, "config": config, "tensors": tensors}


def default_config(library: str, class_name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a class with what is not as by default."""
    cls = component_class(library, class_name)
    if library == "transformers":
        config = json.loads(cls.config_class(**changes).to_json_string(use_diff=True))
        return architecture_config({**config, "architectures": [class_name]})
    parameters = inspect.signature(cls.__init__).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    return json.loads(json.dumps({"_class_name": class_name, **defaults, **changes}))


def build_entry(name: str, folder: Path) -> dict[str, Any]:
    """The content of the catalog entry `name`."""
    entry = ENTRIES[name]
    pipeline = folder / entry["folder"] if entry["folder"] else None
    model_index = {**(read_json(pipeline / "model_index.json") if pipeline else {}), **entry.get("model_index", {})}
    files = {}
    published = read_json(pipeline / "scheduler/scheduler_config.json") if pipeline else {}
    scheduler = {**published, **entry.get("scheduler", {})}
    model_index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    files["scheduler/scheduler_config.json"] = architecture_config(scheduler)
    extractor = None if pipeline is None else pipeline / "feature_extractor/preprocessor_config.json"
    if extractor is not None and extractor.exists():
        files["feature_extractor/preprocessor_config.json"] = read_json(extractor)
    tokenizers = dict(entry.get("tokenizers", {}))
    for part, value in model_index.items():
        if pipeline is not None and part.startswith("tokenizer") and value[1]:
            tokenizers[part] = tokenizer_facts(pipeline / part, value[1])
    if name == "flux-dev":
        tokenizers["tokenizer_2"]["model_max_length"] = FLUX_DEV_PROMPT_TOKENS
    return {
        "title": entry["title"],
        "hub_id": entry["hub_id"],
        "aliases": entry["aliases"],
        "provenance": entry.get("provenance", AS_PUBLISHED),
        "model_index": model_index,
        "components": dict(sorted(entry["components"].items())),
        "files": files,
        "tokenizers": tokenizers,
    }


def tokenizer_facts(folder: Path, class_name: str) -> dict[str, Any]:
    """What a tokenizer of this kind needs besides its vocabulary: class, longest prompt in tokens, padding token."""
    config = read_json(folder / "tokenizer_config.json")
    special = read_json(folder / "special_tokens_map.json")
    pad = special["pad_token"]  # where the two files differ, the map is what loaders used
    return {
        "tokenizer_class": class_name,
        "model_max_length": config["model_max_length"],
        "pad_token": pad["content"] if isinstance(pad, dict) else pad,
    }


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def dump(value: Any, indent: int = 0, before: int = 0, width: int = 118) -> str:
    """`value` as JSON, each object or list on one line where it fits behind `before` characters."""
    line = json.dumps(value)
    if not isinstance(value, dict | list) or not value or len(line) + indent + before <= width:
        return line
    pad = " " * (indent + 1)
    if isinstance(value, list):
        return "[\n" + ",\n".join(pad + dump(item, indent + 1) for item in value) + "\n" + " " * indent + "]"
    items = (f"{pad}{json.dumps(key)}: {dump(item, indent + 1, len(key) + 4)}" for key, item in value.items())
    return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"


def main() -> None:
    """Writes every file of the catalog."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, help="folder of published pipelines' configs")
    parser.add_argument("--out", type=Path, default=catalog.FOLDER)
    arguments = parser.parse_args()
    contents = build_components(arguments.configs)
    bases = {file: base for file, (_, _, base) in PUBLISHED.items() if base}
    bases |= {file: start for file, (start, _, only_changes) in CHANGED.items() if only_changes}
    (arguments.out / "components").mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        if file in bases:
            content = {"extends": bases[file], **difference(contents[bases[file]], content)}
        (arguments.out / "components" / f"{file}.json").write_text(dump(content) + "\n", encoding="utf-8")
    for file, content in contents.items():
        if expand(catalog.component_content(file)["tensors"]) != expand(content["tensors"]):
            raise SystemExit(f"{file}: what was written does not expand to what was built")
    entries = {name: build_entry(name, arguments.configs) for name in ENTRIES}
    for name, entry in entries.items():
        if base := EXTENDS.get(name):
            entry = {"extends": base, **difference(entries[base], entry)}
        (arguments.out / f"{name}.json").write_text(dump(entry) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
