"""A random EDM pipeline of real diffusers classes, small enough for milliseconds a step."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import EDMEulerScheduler, UNet2DModel

from diffpref.pipelines.edm import EDMPipeline

SIZE = 16
"""Pixels; the network sees 8 x 8 patches."""
PATCH = 2
SIGMA_DATA = 0.7
CLASSES = ("trouser", "Ankle boot", "bag")


def small_unet(channels: int = 1, classes: int | None = len(CLASSES), seed: int = 0) -> UNet2DModel:
    """A UNet for grey (1) or RGB (3) pictures; classes None is unconditional. Equal seeds give equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DModel(
            sample_size=SIZE // PATCH,
            in_channels=channels * PATCH**2,
            out_channels=channels * PATCH**2,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=8,
            norm_num_groups=4,
            num_class_embeds=None if classes is None else classes + 1,
        ).eval()


def small_pipeline(
    channels: int = 1, classes: Sequence[str] | None = CLASSES, seed: int = 0, **scheduler: float
) -> EDMPipeline:
    """The pipeline; classes None is unconditional."""
    unet = small_unet(channels, None if classes is None else len(classes), seed)
    noise = EDMEulerScheduler(**{"sigma_data": SIGMA_DATA, **scheduler})
    pipeline = EDMPipeline(unet, noise, PATCH, classes)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_pipeline(
    folder: Path, channels: int = 1, classes: Sequence[str] | None = CLASSES, seed: int = 0, **scheduler: float
) -> Path:
    """The pipeline in the folder."""
    small_pipeline(channels, classes, seed, **scheduler).save_pretrained(folder)
    return folder
