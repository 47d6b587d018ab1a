"""Stable Diffusion XL: a UNet on the variance-preserving path, conditioned on two text encoders and picture sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from diffpref.backbones import Checkpoint, Encoder, Times, weights_hash
from diffpref.backbones.lora import lora_metadata, lora_state
from diffpref.path import GaussianPath, variance_preserving
from diffpref.transition import Ancestral
from diffpref.types import Cond

COMPONENT = "unet"
LORA_TARGETS = ("to_k", "to_q", "to_v", "to_out.0")
SIDE = 8
STEP = Ancestral()
STEPS = 1000


def load_network(checkpoint: Checkpoint, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet of the pipeline."""
    return UNet2DConditionModel.from_pretrained(
        checkpoint.source, subfolder="unet", dtype=dtype, **checkpoint.options()
    )


def load_path(checkpoint: Checkpoint) -> GaussianPath:
    """The path that the pipeline's scheduler was trained on: epsilon, v or sample prediction."""
    # diffusers annotates `from_pretrained` as if it could return a tuple; hence Any, here and below.
    scheduler: Any = DDPMScheduler.from_pretrained(
        checkpoint.source, subfolder="scheduler", revision=checkpoint.revision
    )
    if len(scheduler.alphas_cumprod) != STEPS:
        raise ValueError(f"{checkpoint.source}: the scheduler has {len(scheduler.alphas_cumprod)} levels, not {STEPS}.")
    return variance_preserving(scheduler.alphas_cumprod, scheduler.config["prediction_type"])


@dataclass(frozen=True)
class SDXL:
    """The UNet as a Backbone; cond holds prompt_embeds "n s d", pooled "n d" and time_ids "n 6"."""

    network: torch.nn.Module
    path: GaussianPath

    def __call__(self, x_t: Float[Tensor, " n *chw"], t: Tensor, cond: Cond) -> Float[Tensor, " n *chw"]:
        added = {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]}
        return self.network(x_t, t, cond["prompt_embeds"], added_cond_kwargs=added, return_dict=False)[0]


def backbone(network: torch.nn.Module, path: GaussianPath) -> SDXL:
    """The network as the loss engine calls it."""
    return SDXL(network, path)


def resolve_times(checkpoint: Checkpoint, times: Times) -> Times:
    """The times as given; raises ValueError for a density that belongs to other paths."""
    if times.timestep_density not in ("auto", "uniform"):
        raise ValueError(f"timestep_density {times.timestep_density} is not for a path of indices: use uniform.")
    return times


def draw_t(path: GaussianPath, times: Times, generator: torch.Generator) -> Tensor:
    """One time index, uniform over all levels as in the official Diffusion-DPO code."""
    return torch.randint(STEPS, (), generator=generator)


def chain_times(path: GaussianPath, steps: int) -> Tensor:
    """The levels of an on-policy chain of `steps` noisy steps, evenly spaced from the last index down.

    The remaining step to the clean picture has almost no noise and is left to the denoiser."""
    return torch.linspace(STEPS - 1, 0, steps + 2).round().long()[:-1]


def time_fraction(t: Tensor) -> Tensor:
    """t as a fraction of the schedule in [0, 1), for metrics by noise level."""
    return t / STEPS


def _load_vae(checkpoint: Checkpoint) -> Any:
    """The pipeline's autoencoder, or the one that replaces it, in float32."""
    folder = {"subfolder": "vae", **checkpoint.options()} if checkpoint.vae is None else {}
    return AutoencoderKL.from_pretrained(checkpoint.vae or checkpoint.source, dtype=torch.float32, **folder)


class SDXLEncoder:
    """The autoencoder and both text encoders, in float32: SDXL's autoencoder overflows in half precision."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.vae = _load_vae(checkpoint).to(device)
        self.pipeline: Any = StableDiffusionXLPipeline.from_pretrained(
            checkpoint.source, unet=None, vae=None, dtype=torch.float32, **checkpoint.options()
        ).to(device)
        self.device = device
        parts = (self.vae, self.pipeline.text_encoder, self.pipeline.text_encoder_2)
        self.identity = "-".join(weights_hash(part) for part in parts if part is not None)

    @torch.no_grad()
    def encode_pictures(
        self, pictures: Float[Tensor, "n 3 h w"], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "n c hl wl"]:
        """Latents as the UNet sees them; pictures in [-1, 1]. The posterior is drawn with each picture's generator."""
        posterior = self.vae.encode(pictures.to(self.device)).latent_dist
        noise = torch.stack([torch.randn(posterior.mean.shape[1:], generator=g) for g in generators])
        latents = posterior.mean + posterior.std * noise.to(self.device)
        return scale_latents(latents, self.vae.config)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """prompt_embeds "n s d" and pooled "n d"."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "pooled": pooled}


def scale_latents(latents: Float[Tensor, "n c h w"], config: Mapping[str, Any]) -> Float[Tensor, "n c h w"]:
    """The autoencoder's latents in the UNet's units, with the per-channel statistics where the config has them."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(v, device=latents.device, dtype=latents.dtype).view(shape) for v in (mean, std))
        latents = (latents - mean) / std
    return latents * config["scaling_factor"]


def unscale_latents(latents: Float[Tensor, "n c h w"], config: Mapping[str, Any]) -> Float[Tensor, "n c h w"]:
    """The way back from `scale_latents`."""
    latents = latents / config["scaling_factor"]
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(v, device=latents.device, dtype=latents.dtype).view(shape) for v in (mean, std))
        latents = latents * std + mean
    return latents


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
    vae = _load_vae(checkpoint)
    parts = {"text_encoder": None, "text_encoder_2": None, "tokenizer": None, "tokenizer_2": None}
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        checkpoint.source, unet=network, vae=vae, add_watermarker=False, **parts, **checkpoint.options()
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.to(device)
    return pipeline


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
    output_type: str = "pil",
) -> list[Any]:
    """One PIL picture for each prompt, each from its own seed: the pictures a stock pipeline gives for these seeds."""
    pictures: list[Any] = []
    count = len(prompts["pooled"])
    for first in range(0, count, batch_size):
        part = slice(first, min(first + batch_size, count))
        size = part.stop - part.start
        device, dtype = decoder.unet.device, decoder.unet.dtype
        given = {name: value[part].to(device, dtype) for name, value in prompts.items()}
        blank = {name: value.to(device, dtype).expand(size, *value.shape[1:]) for name, value in empty.items()}
        pictures += decoder(
            prompt_embeds=given["prompt_embeds"],
            pooled_prompt_embeds=given["pooled"],
            negative_prompt_embeds=blank["prompt_embeds"],
            negative_pooled_prompt_embeds=blank["pooled"],
            height=resolution,
            width=resolution,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
            output_type=output_type,
        ).images
    return pictures


def sample_latents(decoder: Any, prompts: Cond, empty: Cond, **options: Any) -> Float[Tensor, "n c h w"]:
    """What `sample` would decode, in the network's units; the same options."""
    return torch.stack(sample(decoder, prompts, empty, output_type="latent", **options))


@torch.no_grad()
def decode(decoder: Any, latents: Float[Tensor, "n c h w"]) -> list[Any]:
    """PIL pictures of latents in the network's units."""
    vae = decoder.vae
    pixels = vae.decode(unscale_latents(latents.to(vae.device, vae.dtype), vae.config)).sample
    return decoder.image_processor.postprocess(pixels, output_type="pil")


def save_lora(network: torch.nn.Module, folder: Path) -> None:
    """Write pytorch_lora_weights.safetensors as `StableDiffusionXLPipeline.load_lora_weights` reads it."""
    StableDiffusionXLPipeline.save_lora_weights(
        folder,
        unet_lora_layers=dict(lora_state(network)),
        unet_lora_adapter_metadata=lora_metadata(network),
    )
