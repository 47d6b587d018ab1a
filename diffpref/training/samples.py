"""Pictures of fixed prompts and seeds while training, as PNG grids and to the trackers."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from diffpref.backbones import Family
from diffpref.files import atomic
from diffpref.report.grid import picture_grid
from diffpref.run.trackers import log_pictures
from diffpref.sources.dataset import Encoded
from diffpref.training.config import TrainConfig


@contextmanager
def averaged(ema: EMAModel | None, parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """The averaged weights in place of the trained ones, where there is an average."""
    if ema is None:
        yield
        return
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


def draw_samples(
    config: TrainConfig,
    family: Family,
    network: torch.nn.Module,
    encoded: Encoded,
    ema: EMAModel | None,
    parameters: Sequence[torch.nn.Parameter],
    accelerator: Accelerator,
    step: int,
) -> None:
    """Write samples/step-N.png: the validation prompts, each from the seed (run seed + its place)."""
    settings, folder = config.validation, config.run.output_dir / "samples"
    prompts = settings.validation_prompts
    folder.mkdir(parents=True, exist_ok=True)
    # The decoder is loaded for this and freed again: training keeps its memory.
    decoder = family.load_decoder(network, accelerator.device)
    network.eval()
    with averaged(ema, parameters), accelerator.autocast():
        pictures = decoder.sample(
            encoded.validation,
            encoded.empty,
            resolution=config.data.resolution,
            seeds=[config.run.seed + place for place in range(len(prompts))],
            steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            batch_size=settings.validation_batch_size,
        )
    network.train()
    del decoder
    gc.collect()
    atomic.write_json(folder / "prompts.json", list(prompts))
    columns = min(len(prompts), 8)
    atomic.save_picture(folder / f"step-{step:06d}.png", picture_grid(pictures, columns))
    log_pictures(accelerator, "samples", pictures, step, list(prompts))
