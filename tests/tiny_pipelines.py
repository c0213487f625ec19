"""Pipelines of every family with seeded random weights, small enough to be made in a second, in the real classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tiny_parts import (
    clip_text,
    clip_tokenizer,
    gemma_tokenizer,
    t5_text,
    t5_tokenizer,
    tiny_transformer,
    tiny_unet,
    tiny_vae,
)


def make(family: str, folder: Path) -> Path:
    """The folder of a float32 pipeline of that family (a key of FAMILIES), about 1 M parameters."""
    import torch

    torch.manual_seed(0)
    FAMILIES[family](folder.parent / f"{folder.name}-tokenizers").save_pretrained(folder)
    return folder


def _unchecked() -> dict[str, Any]:
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def sd1(tokenizers: Path, pipeline: str = "StableDiffusionPipeline", unet: Any = None, **others: Any) -> Any:
    """A random Stable Diffusion 1; `others` are components and options in place of the usual ones."""
    import diffusers

    return getattr(diffusers, pipeline)(
        **{
            "vae": tiny_vae(),
            "text_encoder": clip_text(),
            "tokenizer": clip_tokenizer(tokenizers / "clip"),
            "unet": unet if unet is not None else tiny_unet(),
            "scheduler": diffusers.DDIMScheduler(),
            **_unchecked(),
            **others,
        }
    )


def _sd2(tokenizers: Path) -> Any:
    from diffusers import DDIMScheduler

    unet = tiny_unet(use_linear_projection=True, attention_head_dim=(4, 8), upcast_attention=True)
    scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    return sd1(tokenizers, unet=unet, scheduler=scheduler)


def sdxl(
    tokenizers: Path,
    pipeline: str = "StableDiffusionXLPipeline",
    unet_options: Mapping[str, Any] = MappingProxyType({}),
    **others: Any,
) -> Any:
    """A random SDXL; `others` are components and options in place of the usual ones."""
    import diffusers

    widths = 6 * 8 + 32  # six numbers in 8 channels each, and the pooled text
    unet = tiny_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=widths,
        cross_attention_dim=64,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **unet_options,
    )
    return getattr(diffusers, pipeline)(
        **{
            "vae": tiny_vae(force_upcast=True),
            "text_encoder": clip_text(),
            "text_encoder_2": clip_text(projected=True),
            "tokenizer": clip_tokenizer(tokenizers / "clip"),
            "tokenizer_2": clip_tokenizer(tokenizers / "clip"),
            "unet": unet,
            "scheduler": diffusers.EulerDiscreteScheduler(),
            "add_watermarker": False,
        }
        | others
    )


def _sdxl_refiner(tokenizers: Path) -> Any:
    """SDXL's refiner draws over a picture, reads one text encoder, and has five added numbers in place of six."""
    unet = tiny_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2560,  # by which it is known
        use_linear_projection=True,
    )
    return sdxl(
        tokenizers,
        "StableDiffusionXLImg2ImgPipeline",
        unet=unet,
        text_encoder=None,
        text_encoder_2=clip_text(projected=True, projection=1280),
        tokenizer=None,
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
    )


def _sdxl_turbo(tokenizers: Path) -> Any:
    from diffusers import EulerAncestralDiscreteScheduler

    return sdxl(tokenizers, scheduler=EulerAncestralDiscreteScheduler(timestep_spacing="trailing"))


def _lcm(tokenizers: Path) -> Any:
    from diffusers import LCMScheduler

    return sd1(
        tokenizers, "LatentConsistencyModelPipeline", unet=tiny_unet(time_cond_proj_dim=16), scheduler=LCMScheduler()
    )


def _inpaint(tokenizers: Path) -> Any:
    return sd1(tokenizers, "StableDiffusionInpaintPipeline", unet=tiny_unet(in_channels=9))


def _img2img(tokenizers: Path) -> Any:
    return sd1(tokenizers, "StableDiffusionImg2ImgPipeline")


def _controlnet(tokenizers: Path) -> Any:
    from diffusers import ControlNetModel
    from torch import nn

    unet = tiny_unet()
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    for block in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        nn.init.normal_(block.weight, std=0.05)  # they begin at zero, where nothing of a ControlNet would be seen
    nn.init.normal_(controlnet.controlnet_cond_embedding.conv_out.weight, std=0.05)
    return sd1(tokenizers, "StableDiffusionControlNetPipeline", unet=unet, controlnet=controlnet)


def _tiny_autoencoder(tokenizers: Path) -> Any:
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny(
        encoder_block_out_channels=(16, 16),
        decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    return sd1(tokenizers, vae=vae)


def _sd3(tokenizers: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    return StableDiffusion3Pipeline(
        transformer=tiny_transformer("SD3Transformer2DModel"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(projected=True),
        tokenizer=clip_tokenizer(tokenizers / "clip"),
        text_encoder_2=clip_text(projected=True),
        tokenizer_2=clip_tokenizer(tokenizers / "clip"),
        text_encoder_3=t5_text(64),
        tokenizer_3=t5_tokenizer(),
    )


def _flux(tokenizers: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    return FluxPipeline(
        transformer=tiny_transformer("FluxTransformer2DModel"),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=tiny_vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(tokenizers / "clip"),
        text_encoder_2=t5_text(32),
        tokenizer_2=t5_tokenizer(),
    )


def _pixart(tokenizers: Path) -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline

    return PixArtSigmaPipeline(
        transformer=tiny_transformer("PixArtTransformer2DModel"),
        scheduler=DPMSolverMultistepScheduler(),
        vae=tiny_vae(),
        text_encoder=t5_text(32),
        tokenizer=t5_tokenizer(),
    )


def _sana(tokenizers: Path) -> Any:
    from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline
    from transformers import Gemma2Config, Gemma2Model

    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(16, 16),
        decoder_block_out_channels=(16, 16),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    text_encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            bos_token_id=2,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    return SanaPipeline(
        transformer=tiny_transformer("SanaTransformer2DModel"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=gemma_tokenizer(),
    )


FAMILIES: dict[str, Callable[[Path], Any]] = {
    "sd1": sd1,
    "sd2": _sd2,
    "sdxl": sdxl,
    "sdxl-refiner": _sdxl_refiner,
    "sdxl-turbo": _sdxl_turbo,
    "lcm": _lcm,
    "inpaint": _inpaint,
    "img2img": _img2img,
    "controlnet": _controlnet,
    "tiny-autoencoder": _tiny_autoencoder,
    "sd3": _sd3,
    "flux": _flux,
    "pixart": _pixart,
    "sana": _sana,
}
