"""The public configurations of the networks that the configs in configs/ name, so that no download is needed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SDXL_UNET: Mapping[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD15_UNET: Mapping[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SD3_TRANSFORMER: Mapping[str, Any] = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
SD35_TRANSFORMER: Mapping[str, Any] = {
    **SD3_TRANSFORMER,
    "pos_embed_max_size": 384,
    "dual_attention_layers": list(range(13)),
    "qk_norm": "rms_norm",
}
EDM_UNET: Mapping[str, Any] = {
    "_class_name": "UNet2DModel",
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 3,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "attention_head_dim": 256,
    "resnet_time_scale_shift": "scale_shift",
    "num_class_embeds": 11,
}
"""A diffusers UNet2DModel of the size of EDM's DDPM++ for CIFAR-10 (Karras et al. 2022): 55.9 M parameters for 55.7 M.

NVlabs' own network has five attentions, this one eight; its pickles are not read here."""
VAE_4: Mapping[str, Any] = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
}
VAE_16: Mapping[str, Any] = {**VAE_4, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
CLIP_L: Mapping[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
}
CLIP_G: Mapping[str, Any] = {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "vocab_size": 49408,
    "hidden_act": "gelu",
}
T5_XXL: Mapping[str, Any] = {
    "architectures": ["T5EncoderModel"],
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}


@dataclass(frozen=True)
class Architecture:
    """A pipeline without weights: its class, the trained network's configuration and those of the encoders."""

    name: str
    pipeline: str
    network: Mapping[str, Any]
    vae: Mapping[str, Any] | None = None
    text: tuple[Mapping[str, Any], ...] = ()
    text_lengths: tuple[int, ...] = field(default=())
    """Tokens of each text encoder's prompt."""


SDXL = Architecture("SDXL base 1.0", "StableDiffusionXLPipeline", SDXL_UNET, VAE_4, (CLIP_L, CLIP_G), (77, 77))
SD15 = Architecture("SD 1.5", "StableDiffusionPipeline", SD15_UNET, {**VAE_4, "sample_size": 512}, (CLIP_L,), (77,))
SD3 = Architecture(
    "SD3 medium", "StableDiffusion3Pipeline", SD3_TRANSFORMER, VAE_16, (CLIP_L, CLIP_G, T5_XXL), (77, 77, 256)
)
SD35 = Architecture(
    "SD3.5 medium", "StableDiffusion3Pipeline", SD35_TRANSFORMER, VAE_16, (CLIP_L, CLIP_G, T5_XXL), (77, 77, 256)
)
EDM = Architecture("EDM for CIFAR-10", "EDMPipeline", EDM_UNET)

BUILT_IN: Mapping[str, Architecture] = {
    "stabilityai/stable-diffusion-xl-base-1.0": SDXL,
    "stabilityai/sdxl-turbo": SDXL,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": SD15,
    "stabilityai/stable-diffusion-3-medium-diffusers": SD3,
    "stabilityai/stable-diffusion-3.5-medium": SD35,
    "my-edm-cifar10": EDM,
}
"""By the names that the configs use; my-edm-cifar10 stands for the user's own folder until there is one."""
