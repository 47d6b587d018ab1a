"""What SD 1.5, 2.x and XL share: a UNet on the variance-preserving path, whose times are the indices of a table."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from diffpref.backbones import Checkpoint, Times
from diffpref.backbones.adapters.lora import lora_metadata, lora_state
from diffpref.path import GaussianPath, variance_preserving

STEPS = 1000


def load_network(checkpoint: Checkpoint, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet of the pipeline."""
    return UNet2DConditionModel.from_pretrained(
        checkpoint.source, subfolder="unet", dtype=dtype, **checkpoint.options()
    )


def load_path(checkpoint: Checkpoint) -> GaussianPath:
    """The path that the pipeline's scheduler was trained on: epsilon, v or sample prediction.

    Raises:
        ValueError: a scheduler without a table of betas (EDM, flow), of another length, or of another prediction.
    """
    # diffusers annotates its loaders as if they could return a tuple; hence Any, here and below.
    config: Any = DDPMScheduler.load_config(checkpoint.source, subfolder="scheduler", revision=checkpoint.revision)
    # DDPMScheduler fills in its own table for a scheduler that has none, and says nothing.
    if "beta_schedule" not in config:
        raise ValueError(
            f"{checkpoint.source}: its scheduler {config.get('_class_name')} has no beta_schedule. EDM and flow "
            "variants of this pipeline, like playground-v2.5, are not supported; DDPM, DDIM, PNDM, Euler and DPM are."
        )
    try:
        scheduler: Any = DDPMScheduler.from_config(config)
        table, prediction = scheduler.alphas_cumprod, scheduler.config["prediction_type"]
        if len(table) != STEPS:
            raise ValueError(f"the scheduler has {len(table)} levels, not {STEPS}.")
        if prediction == "epsilon" and not table.all():
            raise ValueError(
                "at a terminal SNR of zero epsilon says nothing of the picture: v_prediction belongs to it."
            )
        return variance_preserving(table, prediction)
    except (ValueError, NotImplementedError) as problem:
        raise ValueError(f"{checkpoint.source}: {problem}") from None


def resolve_times(checkpoint: Checkpoint, times: Times) -> Times:
    """The times as uniform over all indices; raises ValueError for what belongs to other paths."""
    if times.timestep_density not in ("auto", "uniform"):
        raise ValueError(f"timestep_density {times.timestep_density} is not for a path of indices: use uniform.")
    if times.timestep_shift is not None:
        raise ValueError(f"timestep_shift {times.timestep_shift} is for flow models: {checkpoint.source} is none.")
    return dataclasses.replace(times, timestep_density="uniform")


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


def save_lora(network: torch.nn.Module, folder: Path) -> None:
    """Write pytorch_lora_weights.safetensors as the `load_lora_weights` of both UNet pipelines reads it."""
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=dict(lora_state(network)),
        unet_lora_adapter_metadata=lora_metadata(network),
    )
