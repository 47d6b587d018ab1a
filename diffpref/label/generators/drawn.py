"""What a generator gives for a prompt: an image, or why there is none."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Drawn:
    """An image, or why there is none."""

    image: Image.Image | None
    status: str = "ok"
    """ok, nan_image or safety_blocked."""
    message: str = ""


# These texts lie in the column `message` of every data set, where other words would be other bytes.
BLOCKED = "the pipeline's safety checker blocked the picture"
NOT_FINITE = "the picture has values that are not finite numbers"


def drawn(image: Any, *, blocked: bool = False) -> Drawn:
    """What a generator returned, checked and in RGB.

    Args:
        image: a PIL image, or an array of height, width and channels in [0, 1].
        blocked: whether a safety checker took the image away.
    """
    if blocked:
        return Drawn(None, "safety_blocked", BLOCKED)
    if isinstance(image, Image.Image):
        return Drawn(image.convert("RGB"))
    array = np.asarray(image)
    if not np.isfinite(array).all():
        return Drawn(None, "nan_image", NOT_FINITE)
    # The rule by which diffusers makes PIL images, so that a stock pipeline draws the same bytes.
    pixels = (np.clip(array, 0, 1) * 255).round().astype("uint8")
    return Drawn(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB"))
