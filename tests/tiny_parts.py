"""Parts of random pipelines that are small enough to be made in a moment, in the real classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,."
TOKENS = 16  # of CLIP's text encoders


def clip_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    if not folder.exists():
        tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
        folder.mkdir(parents=True)
        (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": TOKENS,
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(folder)


def t5_tokenizer() -> Any:
    """A T5 tokenizer that knows single characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import T5TokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    pieces = [(piece, 0.0) for piece in special.values()] + [(piece, -1.0) for piece in ("\u2581", *LETTERS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = _ends_with("</s>", 1)
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, **special)


def gemma_tokenizer() -> Any:
    """A tokenizer of single letters of the class that has no rules of its own; Gemma's really has subwords."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    vocabulary = {piece: index for index, piece in enumerate((*special.values(), *LETTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = _ends_with("<eos>", 1)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _ends_with(token: str, index: int) -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(single=f"$A {token}", special_tokens=[(token, index)])


def clip_text(projected: bool = False, hidden: int = 32, projection: int = 32) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=78,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=projection,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def tiny_vae(latent_channels: int = 4, **options: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        latent_channels=latent_channels,
        sample_size=16,
        **options,
    )


def tiny_unet(**options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "attention_head_dim": 8,
            "cross_attention_dim": 32,
        }
        | options
    )


TRANSFORMERS: dict[str, dict[str, Any]] = {
    "SD3Transformer2DModel": {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2,
        "attention_head_dim": 8, "num_attention_heads": 4, "joint_attention_dim": 64, "caption_projection_dim": 32,
        "pooled_projection_dim": 64, "pos_embed_max_size": 32,
    },
    "FluxTransformer2DModel": {
        "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 6, 6),
    },
    "PixArtTransformer2DModel": {
        "sample_size": 8, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4, "in_channels": 4,
        "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 32, "use_additional_conditions": False,
    },
    "SanaTransformer2DModel": {
        "sample_size": 8, "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 2,
        "num_attention_heads": 4, "attention_head_dim": 8, "num_cross_attention_heads": 4,
        "cross_attention_head_dim": 8, "cross_attention_dim": 32, "caption_channels": 16,
    },
}  # fmt: skip


def tiny_transformer(class_name: str, **options: Any) -> Any:
    import diffusers

    return getattr(diffusers, class_name)(**TRANSFORMERS[class_name] | options)


def t5_text(hidden: int = 32, **options: Any) -> Any:
    from transformers import T5Config, T5EncoderModel

    sizes = {"vocab_size": 64, "d_model": hidden, "d_kv": 8, "d_ff": 2 * hidden, "num_layers": 2, "num_heads": 4}
    uses = {"feed_forward_proj": "gated-gelu", "is_encoder_decoder": False, "use_cache": False}
    return T5EncoderModel(T5Config(**sizes | uses | options))


def denoised(model: Any) -> Any:
    """What a UNet or a tiny transformer gives for random latents and text, in its precision."""
    import torch

    def random(*shape: int, seed: int = 1) -> torch.Tensor:
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return drawn.to(model.dtype)

    config, class_name = model.config, type(model).__name__
    text_width = {"UNet2DConditionModel": "cross_attention_dim", "SD3Transformer2DModel": "joint_attention_dim",
                  "FluxTransformer2DModel": "joint_attention_dim"}.get(class_name, "caption_channels")  # fmt: skip
    given = {"timestep": torch.tensor([500.0, 20.0]), "encoder_hidden_states": random(2, 5, config[text_width], seed=2)}
    if "pooled_projection_dim" in config:
        given["pooled_projections"] = random(2, config.pooled_projection_dim, seed=3)
    latents = random(2, config.in_channels, 8, 8)
    if class_name == "FluxTransformer2DModel":  # packed latents at six places
        latents = random(2, 6, config.in_channels)
        given |= {"img_ids": torch.arange(18.0).view(6, 3), "txt_ids": torch.zeros(5, 3)}
    with torch.no_grad():
        return model(latents, **given)[0]
