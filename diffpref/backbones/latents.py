"""What the families in an autoencoder's latent space share: its units, encoding, sampling and decoding of pictures."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from diffpref.backbones import Checkpoint
from diffpref.types import Cond

PIPELINE_NAMES = {"prompt_embeds": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
"""A prompt's tensors by our names, and as the pipelines' calls name them."""


def load_vae(checkpoint: Checkpoint) -> Any:
    """The pipeline's autoencoder, or the one that replaces it, in float32: SDXL's overflows in half precision."""
    folder = {"subfolder": "vae", **checkpoint.options()} if checkpoint.vae is None else {}
    return AutoencoderKL.from_pretrained(checkpoint.vae or checkpoint.source, dtype=torch.float32, **folder)


def _units(config: Mapping[str, Any], like: Tensor) -> tuple[Tensor, Tensor]:
    """offset and scale of the network's units, (latents - offset) * scale, for each channel or for all."""
    mean, std, shift = (config.get(name) for name in ("latents_mean", "latents_std", "shift_factor"))
    offset, scale = like.new_tensor(shift or 0.0), like.new_tensor(config["scaling_factor"])
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        std = like.new_tensor(std).view(shape)
        offset, scale = like.new_tensor(mean).view(shape) + offset * std, scale / std
    return offset, scale


def scale_latents(latents: Float[Tensor, "n c h w"], config: Mapping[str, Any]) -> Float[Tensor, "n c h w"]:
    """The autoencoder's latents in the network's units, by what its config has of scale, shift, mean and std."""
    offset, scale = _units(config, latents)
    return (latents - offset) * scale


def unscale_latents(latents: Float[Tensor, "n c h w"], config: Mapping[str, Any]) -> Float[Tensor, "n c h w"]:
    """The way back from `scale_latents`."""
    offset, scale = _units(config, latents)
    return latents / scale + offset


@torch.no_grad()
def encode_pictures(
    vae: Any, pictures: Float[Tensor, "n 3 h w"], generators: Sequence[torch.Generator]
) -> Float[Tensor, "n c hl wl"]:
    """Latents as the network sees them; pictures in [-1, 1]. The posterior is drawn with each picture's generator."""
    posterior = vae.encode(pictures.to(vae.device)).latent_dist
    noise = torch.stack([torch.randn(posterior.mean.shape[1:], generator=g) for g in generators])
    return scale_latents(posterior.mean + posterior.std * noise.to(vae.device), vae.config)


@torch.no_grad()
def sample(
    decoder: Any,
    prompts: Cond,
    empty: Cond,
    *,
    resolution: int,
    seeds: Sequence[int],
    steps: int,
    guidance_scale: float,
    batch_size: int,
    output_type: Literal["pil", "latent"] = "pil",
) -> list[Any]:
    """One PIL picture for each prompt, each from its own seed: the pictures a stock pipeline gives for these seeds."""
    network = decoder.unet if hasattr(decoder, "unet") else decoder.transformer
    count = len(prompts["prompt_embeds"])
    pictures: list[Any] = []
    for first in range(0, count, batch_size):
        part = slice(first, min(first + batch_size, count))
        given = {}
        for name, theirs in PIPELINE_NAMES.items():
            if name in prompts:
                some, blank = (value[name].to(network.device, network.dtype) for value in (prompts, empty))
                given[theirs] = some[part]
                given[f"negative_{theirs}"] = blank.expand(len(some[part]), *blank.shape[1:])
        latents = decoder(
            **given,
            height=resolution,
            width=resolution,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
            output_type="latent",
        ).images
        pictures += decode(decoder, latents) if output_type == "pil" else list(latents)
    return pictures


def latent_shape(decoder: Any, resolution: int) -> tuple[int, ...]:
    """Channels, height and width of one picture's latent."""
    network = decoder.unet if hasattr(decoder, "unet") else decoder.transformer
    side = resolution // decoder.vae_scale_factor
    return network.config.in_channels, side, side


@torch.no_grad()
def decode(decoder: Any, latents: Float[Tensor, "n c h w"]) -> list[Any]:
    """PIL pictures of latents in the network's units; in float32 also where the caller's autocast says otherwise."""
    vae = decoder.vae
    with torch.autocast(vae.device.type, enabled=False):
        pixels = vae.decode(unscale_latents(latents.to(vae.device, vae.dtype), vae.config)).sample
    return decoder.image_processor.postprocess(pixels, output_type="pil")
