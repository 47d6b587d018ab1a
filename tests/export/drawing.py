"""The trainer's own image of a run, and the image of a stock pipeline, from the same prompt and seed."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffpref import load_policy
from tests import small_sd3
from tests.small_sdxl import SIZE

PROMPT, SEED, STEPS, GUIDANCE = "red cat", 1, 4, 3.0
LSB = 1 / 255


def trainers(run: Path, size: int = SIZE) -> np.ndarray:
    """What the training loop's own sampler draws with the run's weights, in [0, 1]."""
    loaded: Any = load_policy(run, device="cpu")
    family, network = loaded.encode.family, loaded.policy.model.network
    encoder = family.load_encoder(torch.device("cpu"))
    (image,) = family.load_decoder(network, torch.device("cpu")).sample(
        encoder.encode_prompts([PROMPT]),
        family.empty_prompt(encoder),
        resolution=size,
        seeds=[SEED],
        steps=STEPS,
        guidance_scale=GUIDANCE,
        batch_size=1,
    )
    return np.asarray(image, dtype=np.float64) / 255


def stocks(pipe: Any, size: int = SIZE) -> np.ndarray:
    """What a stock pipeline draws."""
    pipe.set_progress_bar_config(disable=True)
    longest = {"max_sequence_length": small_sd3.TOKENS} if hasattr(pipe, "transformer") else {}
    (image,) = pipe(
        PROMPT,
        height=size,
        width=size,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(SEED),
        **longest,
    ).images
    return np.asarray(image, dtype=np.float64) / 255


def far(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of two images, in [0, 1]."""
    return float(np.abs(one - other).max())
