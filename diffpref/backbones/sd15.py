"""Stable Diffusion 1.x and 2.x: a UNet on the variance-preserving path, conditioned on one text encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from diffpref.backbones import Checkpoint, Encoder, latents, unet, unit_weight, weights_hash
from diffpref.backbones.precision import as_weights
from diffpref.path import GaussianPath
from diffpref.transition import Ancestral
from diffpref.types import Cond

COMPONENT = "unet"
LORA_TARGETS = ("to_k", "to_q", "to_v", "to_out.0")
SIDE = 8
STEP = Ancestral()
# The safety checker paints pictures black, which would pass for a broken model; pictures are shown to their maker only.
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

load_network, load_path, save_lora = unet.load_network, unet.load_path, unet.save_lora
resolve_times, draw_t, loss_weight = unet.resolve_times, unet.draw_t, unit_weight
chain_times, time_fraction = unet.chain_times, unet.time_fraction
sample, decode = latents.sample, latents.decode
latent_shape = latents.latent_shape


@dataclass(frozen=True)
class SD15:
    """The UNet as a Backbone; cond holds prompt_embeds "n s d"."""

    network: torch.nn.Module
    path: GaussianPath

    def __call__(self, x_t: Float[Tensor, " n *chw"], t: Tensor, cond: Cond) -> Float[Tensor, " n *chw"]:
        x_t, text = (as_weights(self.network, each) for each in (x_t, cond["prompt_embeds"]))
        return self.network(x_t, t, text, return_dict=False)[0]


def backbone(network: torch.nn.Module, path: GaussianPath) -> SD15:
    """The network as the loss engine calls it."""
    return SD15(network, path)


class SD15Encoder:
    """The autoencoder and the text encoder, in float32."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.device = device
        self.vae = latents.load_vae(checkpoint).to(device)
        self.pipeline: Any = StableDiffusionPipeline.from_pretrained(
            checkpoint.source, unet=None, vae=None, dtype=torch.float32, **UNCHECKED, **checkpoint.options()
        ).to(device)
        self.identity = f"{weights_hash(self.vae)}-{weights_hash(self.pipeline.text_encoder)}"

    def encode_pictures(
        self, pictures: Float[Tensor, "n 3 h w"], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "n c hl wl"]:
        """Latents as the UNet sees them; see `latents.encode_pictures`."""
        return latents.encode_pictures(self.vae, pictures, generators)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """prompt_embeds "n s d"."""
        embeds, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds}


def load_encoder(checkpoint: Checkpoint, device: torch.device) -> SD15Encoder:
    """What turns pictures and prompts into tensors."""
    return SD15Encoder(checkpoint, device)


def empty_prompt(checkpoint: Checkpoint, encoder: Encoder) -> dict[str, Tensor]:
    """The unconditional prompt of the pipeline: "", encoded."""
    return encoder.encode_prompts([""])


def group_cond(prompts: Cond, resolution: int) -> dict[str, Tensor]:
    """The conditioning of a batch: the prompts alone."""
    return dict(prompts)


def load_decoder(checkpoint: Checkpoint, network: torch.nn.Module, device: torch.device) -> StableDiffusionPipeline:
    """The pipeline around a network, without text encoder and safety checker: prompts come encoded."""
    vae = latents.load_vae(checkpoint).to(device)
    parts = {"text_encoder": None, "tokenizer": None, **UNCHECKED}
    pipeline = StableDiffusionPipeline.from_pretrained(
        checkpoint.source, unet=network, vae=vae, **parts, **checkpoint.options()
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
