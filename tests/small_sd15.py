"""A random SD 1.5 pipeline of real diffusers classes, the size of `tests.small_sdxl`."""

from pathlib import Path

import torch
from diffusers import DDPMScheduler, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from tests.small_sdxl import SCHEDULE, SIZE, small_text_encoder, small_tokenizer, small_vae

WIDTH = 16
"""Channels of the text encoder."""
# Without these two, the pipeline warns of an outdated scheduler and changes it.
DIFFUSION = {**SCHEDULE, "steps_offset": 1, "clip_sample": False}


def small_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def save_pipeline(folder: Path, seed: int = 0, scheduler: SchedulerMixin | None = None, **settings: object) -> Path:
    """The pipeline in the folder, with this scheduler or DDPM's with these settings; equal seeds give equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = small_tokenizer(folder / "vocabulary")
        pipeline = StableDiffusionPipeline(
            small_vae(),
            small_text_encoder(CLIPTextModel, tokenizer),
            tokenizer,
            small_unet(),
            scheduler or DDPMScheduler(**{**DIFFUSION, **settings}),
            None,
            None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder
