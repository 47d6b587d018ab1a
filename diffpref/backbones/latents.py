"""What the families in an autoencoder's latent space share: its units, encoding, sampling and decoding of pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffpref.backbones.checkpoint import Checkpoint
from diffpref.backbones.prompts import concatenate
from diffpref.types import Cond

SCALE = 8
"""Pixels of a picture's side for each of its latent's, where the autoencoder has Stable Diffusion's four levels."""
TOKENS = {"prompt_embeds": "prompt_embeds"}
"""A prompt's tensors by our names, and as the pipelines' calls name them."""
POOLED = {**TOKENS, "pooled": "pooled_prompt_embeds"}


def load_vae(checkpoint: Checkpoint) -> Any:
    """The pipeline's autoencoder, or the one that replaces it, in float32: SDXL's overflows in half precision.

    Raises:
        ValueError: its configuration names no autoencoder of diffusers.
    """
    source, where = checkpoint.vae or checkpoint.source, {}
    if checkpoint.vae is None:
        where = {"subfolder": "vae", **checkpoint.options()}
    # Any class of diffusers reads the file; it names the class that the weights are of.
    config: Any = AutoencoderKL.load_config(source, **{k: v for k, v in where.items() if k != "variant"})
    name = config.get("_class_name", AutoencoderKL.__name__)
    kind = getattr(diffusers, name, None) if name.startswith("Autoencoder") else None
    if kind is None:
        raise ValueError(f"{source}: its autoencoder is a {name}, which is none of diffusers {diffusers.__version__}.")
    return kind.from_pretrained(source, dtype=torch.float32, **where)


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
    """Latents as the network sees them; pictures in [-1, 1]. A posterior is drawn with each picture's generator."""
    encoded = vae.encode(pictures.to(vae.device))
    if hasattr(encoded, "latent_dist"):
        posterior = encoded.latent_dist
        noise = torch.stack([torch.randn(posterior.mean.shape[1:], generator=g) for g in generators])
        return scale_latents(posterior.mean + posterior.std * noise.to(vae.device), vae.config)
    # AutoencoderDC has one latent for a picture, and nothing to draw.
    return scale_latents(encoded.latent, vae.config)


@torch.no_grad()
def encode_posteriors(
    vae: Any, pictures: Float[Tensor, "n 3 h w"]
) -> tuple[Float[Tensor, "n c hl wl"], Float[Tensor, "n c hl wl"]]:
    """Mean and standard deviation of the latents as the network sees them; pictures in [-1, 1].

    Raises:
        ValueError: an autoencoder with one latent for a picture.
    """
    encoded = vae.encode(pictures.to(vae.device))
    if not hasattr(encoded, "latent_dist"):
        raise ValueError(f"{type(vae).__name__} has one latent for a picture, and no posterior: leave posterior out.")
    posterior = encoded.latent_dist
    _, scale = _units(vae.config, posterior.mean)
    return scale_latents(posterior.mean, vae.config), posterior.std * scale


@dataclass(frozen=True)
class LatentDecoder:
    """A pipeline around the network, without text encoders: prompts come encoded."""

    pipeline: Any
    network: Any
    names: Mapping[str, str]
    """The prompts' tensors by our names, and as the pipeline's call names them."""

    def __post_init__(self) -> None:
        self.pipeline.set_progress_bar_config(disable=True)

    def sample(
        self,
        prompts: Cond,
        empty: Cond,
        *,
        resolution: int,
        seeds: Sequence[int],
        steps: int,
        guidance_scale: float,
        batch_size: int,
    ) -> list[Image.Image]:
        """One picture for each prompt, each from its own seed: the pictures a stock pipeline gives for these seeds."""
        pictures: list[Image.Image] = []
        for first in range(0, len(seeds), batch_size):
            part = slice(first, first + batch_size)
            some = {name: value[part] for name, value in prompts.items()}
            pictures += self.decode(
                self.latents(
                    some, empty, resolution=resolution, seeds=seeds[part], steps=steps, guidance_scale=guidance_scale
                )
            )
        return pictures

    def latents(
        self, prompts: Cond, empty: Cond, *, resolution: int, seeds: Sequence[int], steps: int, guidance_scale: float
    ) -> Float[Tensor, "n c h w"]:
        """Where the pipeline's sampler ends, in the network's units; all prompts in one batch."""
        blank = {name: value.expand(len(seeds), *value.shape[1:]) for name, value in empty.items()}
        both = concatenate([{name: self._moved(value) for name, value in each.items()} for each in (blank, prompts)])
        assert set(both) <= set(self.names), f"the pipeline reads {list(self.names)}, not all of {list(both)}"
        given: dict[str, Tensor] = {}
        for name, value in both.items():
            theirs = self.names[name]
            given[f"negative_{theirs}"], given[theirs] = value.chunk(2)
        return self.pipeline(
            **given,
            height=resolution,
            width=resolution,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="latent",
        ).images

    def _moved(self, value: Tensor) -> Tensor:
        """The tensor where the network is, in its precision; a mask stays one."""
        network = self.network
        return value.to(network.device) if value.dtype == torch.bool else value.to(network.device, network.dtype)

    def latent_shape(self, resolution: int) -> tuple[int, ...]:
        """Channels, height and width of one picture's latent."""
        side = resolution // self.pipeline.vae_scale_factor
        return self.network.config.in_channels, side, side

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "n c h w"]) -> list[Image.Image]:
        """PIL pictures of latents in the network's units; in float32 whatever the caller's autocast says."""
        vae = self.pipeline.vae
        with torch.autocast(vae.device.type, enabled=False):
            pixels = vae.decode(unscale_latents(latents.to(vae.device, vae.dtype), vae.config)).sample
        return self.pipeline.image_processor.postprocess(pixels, output_type="pil")
