"""EDM in pixel space: a preconditioned UNet on the path x0 + sigma eps, unconditional or with classes as prompts."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from diffusers import EDMEulerScheduler, UNet2DModel
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from diffpref.backbones import Checkpoint, Encoder, Times
from diffpref.path import GaussianPath, edm
from diffpref.pipelines.edm import (
    EDMPipeline,
    NoiseSchedule,
    denoise,
    noise_schedule,
    picture_shape,
    pil_pictures,
)
from diffpref.transition import Ancestral
from diffpref.types import Cond

COMPONENT = "unet"
LORA_TARGETS = ()
SIDE = 1
STEP = Ancestral()
MOST_LABELS = 2049
"""The cache keeps labels as float16, in which the integers up to 2048 are exact."""
SHOWN_CLASSES = 20
"""How many class names an error message lists."""


@dataclass(frozen=True)
class EDMPath(GaussianPath):
    """The EDM path together with the noise that its network was trained for."""

    schedule: NoiseSchedule


def load_network(checkpoint: Checkpoint, dtype: torch.dtype) -> UNet2DModel:
    """The UNet of the pipeline."""
    return UNet2DModel.from_pretrained(checkpoint.source, subfolder="unet", dtype=dtype, **checkpoint.options())


def load_path(checkpoint: Checkpoint) -> EDMPath:
    """The path with sigma_data and the levels of the pipeline's scheduler."""
    # diffusers annotates `from_pretrained` as if it could return a tuple; hence Any, here and below.
    scheduler: Any = EDMEulerScheduler.from_pretrained(
        checkpoint.source, subfolder="scheduler", revision=checkpoint.revision
    )
    schedule = noise_schedule(scheduler.config)
    return EDMPath(**vars(edm(schedule.sigma_data)), schedule=schedule)


@dataclass(frozen=True)
class EDM:
    """The denoiser D(x; sigma) as a Backbone; t is sigma, and cond holds labels "n", which any float may carry."""

    network: torch.nn.Module
    path: EDMPath
    conditional: bool

    def __call__(self, x_t: Float[Tensor, " n *chw"], t: Tensor, cond: Cond) -> Float[Tensor, " n *chw"]:
        labels = cond["labels"].round().long() if self.conditional else None
        return denoise(self.network, x_t, t, labels, self.path.schedule.sigma_data)


def backbone(network: torch.nn.Module, path: EDMPath) -> EDM:
    """The network as the loss engine calls it; the path is that of `load_path`."""
    # accelerate's wrapper for several processes has no config.
    config = extract_model_from_parallel(network).config
    return EDM(network, path, config["num_class_embeds"] is not None)


def resolve_times(checkpoint: Checkpoint, times: Times) -> Times:
    """The times with p_mean, which moves with the data's scale: -1.2 at sigma_data 0.5 (Karras et al. 2022, table 1).

    Raises:
        ValueError: a density that belongs to other paths, or p_std below 0.
    """
    if times.timestep_density not in ("auto", "log_normal"):
        raise ValueError(f"timestep_density {times.timestep_density} is not for EDM's noise levels: use log_normal.")
    if times.p_std < 0:
        raise ValueError(f"p_std must be 0 or above, got {times.p_std}.")
    p_mean = times.p_mean
    if p_mean is None:
        p_mean = -1.2 + log(load_path(checkpoint).schedule.sigma_data / 0.5)
    return dataclasses.replace(times, timestep_density="log_normal", p_mean=p_mean)


def draw_t(path: GaussianPath, times: Times, generator: torch.Generator) -> Tensor:
    """One sigma, with ln sigma ~ N(p_mean, p_std^2); the times come from `resolve_times`."""
    assert times.p_mean is not None
    return (times.p_mean + times.p_std * torch.randn((), generator=generator)).exp()


def loss_weight(path: EDMPath, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2: the error of D as that of the network's own target.

    Karras et al. 2022, table 1; without it the noisiest levels would decide alone."""
    data = path.schedule.sigma_data
    return (t.square() + data**2) / (t * data).square()


def chain_times(path: EDMPath, steps: int) -> Tensor:
    """The levels of an on-policy chain of `steps` noisy steps: Karras' from sigma_max down to sigma_min."""
    return torch.tensor(path.schedule.levels(steps + 1))


def time_fraction(t: Tensor) -> Tensor:
    """sigma / (1 + sigma), the noise's share in [0, 1), for metrics by noise level."""
    return t / (1 + t)


class EDMEncoder:
    """Pictures to the network's patches, and prompts to labels; no weights."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        unet: Any = UNet2DModel.load_config(checkpoint.source, subfolder="unet", revision=checkpoint.revision)
        index: Any = EDMPipeline.load_config(checkpoint.source, revision=checkpoint.revision)
        self.patch_size: int = index.get("patch_size", 1)
        self.classes: Sequence[str] | None = index.get("classes")
        self.channels, self.side = picture_shape(unet, self.patch_size)
        self.labels: int | None = unet.get("num_class_embeds")
        if self.labels is not None and self.labels > MOST_LABELS:
            raise ValueError(f"{checkpoint.source} has {self.labels} labels; at most {MOST_LABELS} are supported.")
        self.identity = (
            f"edm {self.channels} x {self.side}, patch {self.patch_size}, {self.labels} labels, {self.classes}"
        )

    def encode_pictures(
        self, pictures: Float[Tensor, "n 3 h w"], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "n c hp wp"]:
        """The pictures in patches, grey (the mean of the channels) where the network is; no generator is used."""
        check_side(self.side, *pictures.shape[-2:])
        if self.channels == 1:
            pictures = pictures.mean(1, keepdim=True)
        return pixel_unshuffle(pictures, self.patch_size)

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """labels "n": each prompt is a class's name or number, or empty for none."""
        return {"labels": torch.tensor([find_class(prompt, self.labels, self.classes) for prompt in prompts])}


def find_class(text: str, count: int | None, names: Sequence[str] | None) -> int:
    """The label of a class, given by its name (case does not matter) or its number; empty text is no class.

    Args:
        count: labels of the network, of which the last stands for no class; None for a network without classes.
        names: the name of each class, where the pipeline has them.

    Raises:
        ValueError: no such class; names the text and the classes there are.
    """
    wanted = text.strip().casefold()
    if not wanted:
        return 0 if count is None else count - 1
    if count is None:
        raise ValueError(f"prompt {text!r}: this model has no classes, so that every prompt must be empty.")
    folded = [name.casefold() for name in names or ()]
    if wanted in folded:
        return folded.index(wanted)
    if wanted.isdecimal() and int(wanted) < count - 1:
        return int(wanted)
    known = f"a number from 0 to {count - 2}"
    if names:
        more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
        known += f", or one of {', '.join(names[:SHOWN_CLASSES])}{more}"
    raise ValueError(f"prompt {text!r} is no class of this model: give {known}; empty for no class.")


def check_side(side: int, *sides: int) -> None:
    """Raise ValueError where pictures do not have the one size that the network was built for."""
    if any(given != side for given in sides):
        size = " x ".join(str(given) for given in sides)
        raise ValueError(f"this model's pictures are {side} x {side} pixels, not {size}: set resolution: {side}.")


def load_encoder(checkpoint: Checkpoint, device: torch.device) -> EDMEncoder:
    """What turns pictures and prompts into tensors."""
    return EDMEncoder(checkpoint)


def empty_prompt(checkpoint: Checkpoint, encoder: Encoder) -> dict[str, Tensor]:
    """The label that stands for no class."""
    return encoder.encode_prompts([""])


def group_cond(prompts: Cond, resolution: int) -> dict[str, Tensor]:
    """The conditioning of a batch: the labels alone."""
    return dict(prompts)


def load_decoder(checkpoint: Checkpoint, network: torch.nn.Module, device: torch.device) -> EDMPipeline:
    """The pipeline around a network."""
    pipeline = EDMPipeline.from_pretrained(checkpoint.source, unet=network, **checkpoint.options())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


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
    """One PIL picture for each prompt, each from its own seed: the pictures the pipeline gives for these seeds.

    Guidance is against the pipeline's own label for no class, which `empty` is."""
    unet = decoder.unet.config
    side = picture_shape(unet, decoder.config.patch_size)[1]
    check_side(side, resolution, resolution)
    labels = prompts["labels"].round().long().tolist()
    pictures: list[Any] = []
    for first in range(0, len(labels), batch_size):
        part = slice(first, min(first + batch_size, len(labels)))
        pictures += decoder(
            batch_size=part.stop - part.start,
            class_labels=None if unet.num_class_embeds is None else labels[part],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
            output_type=output_type,
        ).images
    return pictures


def latent_shape(decoder: Any, resolution: int) -> tuple[int, ...]:
    """Channels, height and width of one picture as the network sees it."""
    config = decoder.unet.config
    return config.in_channels, config.sample_size, config.sample_size


def decode(decoder: Any, latents: Float[Tensor, "n c h w"]) -> list[Any]:
    """PIL pictures of what the network sees; grey where it is."""
    return pil_pictures(pixel_shuffle(latents, decoder.config.patch_size))


def save_lora(network: torch.nn.Module, folder: Path) -> None:
    """Raises ValueError: stock diffusers has no reader for LoRA of this network."""
    raise ValueError("EDM is trained as a whole, without LoRA: set adapter: full.")
