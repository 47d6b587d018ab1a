"""A measure of your own for DDO's self-play: how alike the samples are.

python -m diffpref.train --config configs/tiny-edm/ddo.yaml --measure examples/extension/measure.py:sameness

A measure is one number for a whole set of images, and lower is better. This one finds a model that draws one
image again and again, and nothing else: use it beside others.
"""

import numpy as np
from PIL import Image


def sameness(images: list[Image.Image], prompts: list[str]) -> float:
    """Minus the standard deviation of a pixel over the images, on average over the pixels; in [-127.5, 0]."""
    pixels = np.stack([np.asarray(image.convert("L"), dtype=np.float64) for image in images])
    return -float(pixels.std(axis=0).mean())
