"""Stable Diffusion XL: a UNet on the variance-preserving path, conditioned on two text encoders and picture sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
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

load_network, load_path, save_lora = unet.load_network, unet.load_path, unet.save_lora
resolve_times, draw_t, loss_weight = unet.resolve_times, unet.draw_t, unit_weight
chain_times, time_fraction = unet.chain_times, unet.time_fraction
sample, decode = latents.sample, latents.decode
latent_shape = latents.latent_shape


@dataclass(frozen=True)
class SDXL:
    """The UNet as a Backbone; cond holds prompt_embeds "n s d", pooled "n d" and time_ids "n 6"."""

    network: torch.nn.Module
    path: GaussianPath

    def __call__(self, x_t: Float[Tensor, " n *chw"], t: Tensor, cond: Cond) -> Float[Tensor, " n *chw"]:
        x_t, text, pooled = (as_weights(self.network, each) for each in (x_t, cond["prompt_embeds"], cond["pooled"]))
        # The sizes stay in float32: bfloat16 knows no 1023.
        added = {"text_embeds": pooled, "time_ids": cond["time_ids"]}
        return self.network(x_t, t, text, added_cond_kwargs=added, return_dict=False)[0]


def backbone(network: torch.nn.Module, path: GaussianPath) -> SDXL:
    """The network as the loss engine calls it."""
    return SDXL(network, path)


class SDXLEncoder:
    """The autoencoder and both text encoders, in float32."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.vae = latents.load_vae(checkpoint).to(device)
        self.pipeline: Any = StableDiffusionXLPipeline.from_pretrained(
            checkpoint.source, unet=None, vae=None, dtype=torch.float32, **checkpoint.options()
        ).to(device)
        parts = (self.vae, self.pipeline.text_encoder, self.pipeline.text_encoder_2)
        self.identity = "-".join(weights_hash(part) for part in parts if part is not None)

    def encode_pictures(
        self, pictures: Float[Tensor, "n 3 h w"], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "n c hl wl"]:
        """Latents as the UNet sees them; see `latents.encode_pictures`."""
        return latents.encode_pictures(self.vae, pictures, generators)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """prompt_embeds "n s d" and pooled "n d"."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "pooled": pooled}


def load_encoder(checkpoint: Checkpoint, device: torch.device) -> SDXLEncoder:
    """What turns pictures and prompts into tensors."""
    return SDXLEncoder(checkpoint, device)


def empty_prompt(checkpoint: Checkpoint, encoder: Encoder) -> dict[str, Tensor]:
    """What the pipeline uses as the unconditional prompt: zeros where its config says so, as SDXL base does.

    The official Diffusion-DPO code encodes "" for its dropped captions; at sampling, guidance then meets zeros that
    were never trained."""
    encoded = encoder.encode_prompts([""])
    config = DiffusionPipeline.load_config(checkpoint.source, revision=checkpoint.revision)
    if dict(config).get("force_zeros_for_empty_prompt", True):  # type: ignore[call-overload]
        return {name: torch.zeros_like(value) for name, value in encoded.items()}
    return encoded


def group_cond(prompts: Cond, resolution: int) -> dict[str, Tensor]:
    """The conditioning of a batch: original size, crop and target size are the resolution, uncropped (as official)."""
    first = prompts["pooled"]
    sizes = torch.tensor([resolution, resolution, 0, 0, resolution, resolution], device=first.device, dtype=first.dtype)
    return {**prompts, "time_ids": sizes.expand(len(first), 6)}


def load_decoder(checkpoint: Checkpoint, network: torch.nn.Module, device: torch.device) -> StableDiffusionXLPipeline:
    """The pipeline around a network, without text encoders: prompts come encoded."""
    parts = {"text_encoder": None, "text_encoder_2": None, "tokenizer": None, "tokenizer_2": None}
    vae = latents.load_vae(checkpoint).to(device)
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        checkpoint.source, unet=network, vae=vae, add_watermarker=False, **parts, **checkpoint.options()
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
