"""Stable Diffusion 1.x and 2.x: a UNet on the variance-preserving path, conditioned on one text encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers  # its pipelines are imported where they are used
import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.backbones import Encoder, latents
from diffpref.backbones.checkpoint import Checkpoint
from diffpref.backbones.identity import weights_hash
from diffpref.backbones.precision import as_weights
from diffpref.backbones.shape import Shape
from diffpref.backbones.unet import UNetFamily, meta_path
from diffpref.path import GaussianPath
from diffpref.types import Cond

# The safety checker paints pictures black, which would pass for a broken model; pictures are shown to their maker only.
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
WIDTH_OF_2 = 1024
"""Of the text encoder of Stable Diffusion 2.x; that of 1.x has 768."""


@dataclass(frozen=True)
class SD15Network:
    """The UNet as a Backbone; cond holds prompt_embeds "n s d" and perhaps a mask."""

    network: torch.nn.Module
    path: GaussianPath

    def __call__(self, x_t: Float[Tensor, " n *chw"], t: Tensor, cond: Cond) -> Float[Tensor, " n *chw"]:
        x_t, text = (as_weights(self.network, each) for each in (x_t, cond["prompt_embeds"]))
        mask = cond.get("prompt_embeds_mask")
        return self.network(x_t, t, text, encoder_attention_mask=mask, return_dict=False)[0]


class SD15Encoder:
    """The autoencoder and the text encoder, in float32."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.device = device
        self.vae = latents.load_vae(checkpoint).to(device)
        self.pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(
            checkpoint.source, unet=None, vae=None, dtype=torch.float32, **UNCHECKED, **checkpoint.options()
        ).to(device)
        self.identity = f"{weights_hash(self.vae)}-{weights_hash(self.pipeline.text_encoder)}"

    def encode_pictures(
        self, pictures: Float[Tensor, "n 3 h w"], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "n c hl wl"]:
        """Latents as the UNet sees them; see `latents.encode_pictures`."""
        return latents.encode_pictures(self.vae, pictures, generators)

    def encode_posteriors(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents; see `latents.encode_posteriors`."""
        return latents.encode_posteriors(self.vae, pictures)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """prompt_embeds "n s d"."""
        embeds, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds}


@dataclass(frozen=True)
class SD15(UNetFamily):
    """Stable Diffusion 1.x and 2.x, and what was fine-tuned from them."""

    def backbone(self, network: torch.nn.Module) -> SD15Network:
        """The network as the loss engine calls it."""
        return SD15Network(network, self.path)

    def load_encoder(self, device: torch.device) -> SD15Encoder:
        """What turns pictures and prompts into tensors."""
        return SD15Encoder(self.checkpoint, device)

    def empty_prompt(self, encoder: Encoder) -> dict[str, Tensor]:
        """The unconditional prompt of the pipeline: "", encoded."""
        return encoder.encode_prompts([""])

    def group_cond(self, prompts: Cond, resolution: int) -> dict[str, Tensor]:
        """The prompts alone."""
        return dict(prompts)

    def load_decoder(self, network: torch.nn.Module, device: torch.device) -> latents.LatentDecoder:
        """The pipeline around a network, without text encoder and safety checker: prompts come encoded."""
        vae = latents.load_vae(self.checkpoint).to(device)
        parts = {"text_encoder": None, "tokenizer": None, **UNCHECKED}
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            self.checkpoint.source, unet=network, vae=vae, **parts, **self.checkpoint.options()
        )
        return latents.LatentDecoder(pipeline, network, latents.TOKENS)

    def version(self, network: torch.nn.Module) -> str:
        """That of 1.x, or of 2.x with its wider text encoder."""
        config: Any = network.config
        return "sd_v2" if config["cross_attention_dim"] == WIDTH_OF_2 else "sd_v1"

    @classmethod
    def meta_backbone(cls, network: torch.nn.Module) -> SD15Network:
        """The network on a path like SD's."""
        return SD15Network(network, meta_path())

    @classmethod
    def shape(cls, config: Mapping[str, Any], resolution: int, lengths: Sequence[int], tokens: int | None) -> Shape:
        """Latents of a side of an eighth of the picture's, and CLIP's tokens."""
        side = resolution // latents.SCALE
        prompt = {"prompt_embeds": (tokens or lengths[0], config["cross_attention_dim"])}
        return Shape((config["in_channels"], side, side), prompt)
