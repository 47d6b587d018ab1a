"""Images of fixed prompts and seeds while training, as PNG grids and to the trackers."""

import gc
from pathlib import Path

import torch
from accelerate import Accelerator

from diffpref.backbones import Family
from diffpref.files import atomic
from diffpref.report.grid import picture_grid
from diffpref.run.trackers import log_pictures
from diffpref.training.groups import Validation
from diffpref.types import Cond


def draw_samples(
    network: torch.nn.Module,
    family: Family,
    accelerator: Accelerator,
    settings: Validation,
    *,
    prompts: Cond,
    empty: Cond,
    resolution: int,
    seed: int,
    folder: Path,
    step: int,
) -> None:
    """Write folder/step-N.png: the validation prompts, each from the seed (run seed + its place).

    Args:
        prompts: the encoded validation prompts; `empty` the unconditional one.
        resolution: side of the images, in pixels.
    """
    texts = settings.validation_prompts
    folder.mkdir(parents=True, exist_ok=True)
    # The decoder is loaded for this and freed again: training keeps its memory.
    decoder = family.load_decoder(network, accelerator.device)
    network.eval()
    with accelerator.autocast():
        images = decoder.sample(
            prompts,
            empty,
            resolution=resolution,
            seeds=[seed + place for place in range(len(texts))],
            steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            batch_size=settings.validation_batch_size,
        )
    network.train()
    del decoder
    gc.collect()
    atomic.write_json(folder / "prompts.json", list(texts))
    atomic.save_picture(folder / f"step-{step:06d}.png", picture_grid(images, min(len(texts), 8)))
    log_pictures(accelerator, "samples", images, step, list(texts))
