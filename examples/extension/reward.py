"""A reward of your own: how colourful an image is (Hasler & Süsstrunk 2003).

diffpref reward evaluate --reward examples/extension/reward.py:colourfulness \
    --dataset_name assets/emoji-pairs/heldout.parquet
"""

import numpy as np
from PIL import Image


def colourfulness(images: list[Image.Image], prompts: list[str]) -> list[float]:
    """One number an image, 0 for grey ones and about 100 for very colourful ones; it does not read the prompts."""
    return [_colourfulness(np.asarray(image.convert("RGB"), dtype=np.float64)) for image in images]


def _colourfulness(rgb: np.ndarray) -> float:
    red_green = rgb[..., 0] - rgb[..., 1]
    yellow_blue = (rgb[..., 0] + rgb[..., 1]) / 2 - rgb[..., 2]
    spread = np.hypot(red_green.std(), yellow_blue.std())
    return float(spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()))
