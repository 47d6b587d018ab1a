"""Stable Diffusion XL: a UNet on the variance-preserving path, conditioned on two text encoders and picture sizes."""

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
from diffpref.backbones.loading import read_config
from diffpref.backbones.precision import as_weights
from diffpref.backbones.shape import Shape
from diffpref.backbones.unet import UNetFamily, meta_path
from diffpref.path import GaussianPath
from diffpref.types import Cond

SIZES = 6
"""Numbers of an original size, a crop and a target size."""


@dataclass(frozen=True)
class SDXLNetwork:
    """The UNet as a Backbone; cond holds prompt_embeds "n s d", pooled "n d", time_ids "n 6" and perhaps a mask."""

    network: torch.nn.Module
    path: GaussianPath

    def __call__(self, x_t: Float[Tensor, " n *chw"], t: Tensor, cond: Cond) -> Float[Tensor, " n *chw"]:
        x_t, text, pooled = (as_weights(self.network, each) for each in (x_t, cond["prompt_embeds"], cond["pooled"]))
        # The sizes stay in float32: bfloat16 knows no 1023.
        added = {"text_embeds": pooled, "time_ids": cond["time_ids"]}
        mask = cond.get("prompt_embeds_mask")
        return self.network(x_t, t, text, added_cond_kwargs=added, encoder_attention_mask=mask, return_dict=False)[0]


class SDXLEncoder:
    """The autoencoder and both text encoders, in float32."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.vae = latents.load_vae(checkpoint).to(device)
        self.pipeline: Any = diffusers.StableDiffusionXLPipeline.from_pretrained(
            checkpoint.source, unet=None, vae=None, dtype=torch.float32, **checkpoint.options()
        ).to(device)
        parts = (self.vae, self.pipeline.text_encoder, self.pipeline.text_encoder_2)
        self.identity = "-".join(weights_hash(part) for part in parts if part is not None)

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
        """prompt_embeds "n s d" and pooled "n d"."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "pooled": pooled}


@dataclass(frozen=True)
class SDXL(UNetFamily):
    """SDXL and what was fine-tuned from it."""

    def backbone(self, network: torch.nn.Module) -> SDXLNetwork:
        """The network as the loss engine calls it."""
        return SDXLNetwork(network, self.path)

    def load_encoder(self, device: torch.device) -> SDXLEncoder:
        """What turns pictures and prompts into tensors."""
        return SDXLEncoder(self.checkpoint, device)

    def empty_prompt(self, encoder: Encoder) -> dict[str, Tensor]:
        """What the pipeline uses as the unconditional prompt: zeros where its config says so, as SDXL base does.

        The official Diffusion-DPO code encodes "" for its dropped captions; at sampling, guidance then meets zeros that
        were never trained."""
        encoded = encoder.encode_prompts([""])
        if read_config(diffusers.StableDiffusionXLPipeline, self.checkpoint).get("force_zeros_for_empty_prompt", True):
            return {name: torch.zeros_like(value) for name, value in encoded.items()}
        return encoded

    def group_cond(self, prompts: Cond, resolution: int) -> dict[str, Tensor]:
        """The prompts, and as original size, crop and target size the resolution, uncropped (as official).

        Where `prompts` has a `framing` "b 4", that stands for the original size and the crop, as in diffusers' script.
        """
        first = prompts["pooled"]
        framing = prompts.get("framing", torch.tensor([[resolution, resolution, 0, 0]]).expand(len(first), 4))
        rest = {name: value for name, value in prompts.items() if name != "framing"}
        return {**rest, "time_ids": self.size_ids(framing.to(first), resolution)}

    def size_ids(self, framing: Float[Tensor, "b 4"], resolution: int) -> Float[Tensor, "b 6"]:
        """Original size, crop and target size, each height first."""
        return torch.cat([framing, framing.new_full((len(framing), 2), resolution)], 1)

    def load_decoder(self, network: torch.nn.Module, device: torch.device) -> latents.LatentDecoder:
        """The pipeline around a network, without text encoders: prompts come encoded."""
        parts = {"text_encoder": None, "text_encoder_2": None, "tokenizer": None, "tokenizer_2": None}
        vae = latents.load_vae(self.checkpoint).to(device)
        pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(
            self.checkpoint.source,
            unet=network,
            vae=vae,
            add_watermarker=False,
            **parts,
            **self.checkpoint.options(),
        )
        return latents.LatentDecoder(pipeline, network, latents.POOLED)

    def version(self, network: torch.nn.Module) -> str:
        """SDXL's."""
        return "sdxl_base_v1-0"

    @classmethod
    def meta_backbone(cls, network: torch.nn.Module) -> SDXLNetwork:
        """The network on a path like SDXL's."""
        return SDXLNetwork(network, meta_path())

    @classmethod
    def shape(cls, config: Mapping[str, Any], resolution: int, lengths: Sequence[int], tokens: int | None) -> Shape:
        """Latents of a side of an eighth of the picture's; both CLIPs' tokens side by side, and the sizes."""
        pooled = config["projection_class_embeddings_input_dim"] - SIZES * config["addition_time_embed_dim"]
        prompt = {"prompt_embeds": (tokens or lengths[0], config["cross_attention_dim"]), "pooled": (pooled,)}
        side = resolution // latents.SCALE
        return Shape((config["in_channels"], side, side), prompt, {"time_ids": (SIZES,)})
