"""A generator of your own for labelling: coloured clouds, which show nothing that a prompt asks for.

Among real generators it is the floor: a reward that does not rank its images last does not read the prompt.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

SIDE = 64
"""Pixels of a side."""


def clouds(device: Any) -> Callable[[list[str], list[int]], list[Image.Image]]:
    """The function that draws; a generator with a network loads it here, onto the device."""
    return _draw


def _draw(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
    """One image a prompt, each from its own seed alone."""
    return [_cloud(seed) for seed in seeds]


def _cloud(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
