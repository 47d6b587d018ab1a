"""Images as reward models were published to see them; each model names its own rule, and none is shared silently.

The two libraries that published rewards are built on crop differently by a pixel where the surplus is odd, and convert
colours before the resize or after it; HPSv2 letterboxes instead: one rule for all would move scores.
Axes: n images, h and w pixels.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of red, green and blue in [0, 1], as OpenAI's CLIP and all its kin have them."""

T = TypeVar("T")


def rgb(image: Image.Image) -> Image.Image:
    """The image as the published code converts it: transparency is dropped, not composited.

    transformers 5.24 puts it on white; PickScore was published with 4.27, and MPS converts its images itself."""
    return image if image.mode == "RGB" else image.convert("RGB")


def to_pixels(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """The RGB image's bytes."""
    return torch.from_numpy(np.array(rgb(image), dtype=np.uint8)).permute(2, 0, 1)


def shorter_side(image: Image.Image, size: int) -> Image.Image:
    """The image resized (bicubic, antialiased, in 8 bits) so that its shorter side is `size` pixels.

    It keeps its colour mode, which matters: Pillow resizes a palette by nearest neighbour, and premultiplies alpha."""
    width, height = image.size
    if min(width, height) == size:
        return image
    long = int(size * max(width, height) / min(width, height))
    return image.resize((size, long) if width <= height else (long, size), Image.Resampling.BICUBIC)


def centre_crop(
    image: Image.Image, size: int, *, rounding: Literal["transformers", "torchvision"]
) -> UInt8[Tensor, "3 s s"]:
    """The middle square of an image whose shorter side is `size` pixels or more, in RGB.

    Args:
        rounding: where an odd surplus goes: transformers rounds the offset down, torchvision to the nearest even."""
    surplus = (image.width - size, image.height - size)
    left, top = (s // 2 if rounding == "transformers" else round(s / 2) for s in surplus)
    return to_pixels(image.crop((left, top, left + size, top + size)))


def transformers_square(image: Image.Image, size: int, *, crop: int | None = None) -> UInt8[Tensor, "3 s s"]:
    """The middle of the image as transformers' CLIPImageProcessorPil cuts it: to RGB, resize, crop.

    Args:
        size: the shorter side after the resize, in pixels.
        crop: the side of the square, `size` or below; the default is `size`."""
    side = size if crop is None else crop
    return centre_crop(shorter_side(rgb(image), size), side, rounding="transformers")


def torchvision_square(image: Image.Image, size: int) -> UInt8[Tensor, "3 s s"]:
    """The middle of the image as OpenAI's clip and open_clip cut it with torchvision: resize, crop, to RGB."""
    return centre_crop(shorter_side(image, size), size, rounding="torchvision")


def letterbox(image: Image.Image, size: int, *, antialias: bool) -> Float[Tensor, "3 s s"]:
    """The whole image in [0, 1] (bicubic overshoot stays), its longer side `size`, on black to the square.

    HPSv2's rule (tgxs002/HPSv2:hpsv2/src/open_clip/transform.py, ResizeMaxSize): the image becomes a float tensor
    first, and is resized as one. An image whose longer side is `size` already is padded here too; there it is not, and
    the model refuses it unless it is square.

    Args:
        antialias: False as published (torchvision up to 0.16); True as the same code gives with torchvision from 0.17.

    Raises:
        ValueError: the shorter side would be less than half a pixel."""
    x = to_pixels(image)[None].float() / 255
    height, width = x.shape[-2:]
    scale = size / max(height, width)
    if scale != 1:
        new = [round(side * scale) for side in (height, width)]
        if 0 in new:
            raise ValueError(
                f"an image of {width} x {height} pixels is too long for a square of {size}: its shorter side would "
                f"vanish. Leave it out, or crop it to at most {2 * size - 1} : 1."
            )
        x = torch.nn.functional.interpolate(x, size=new, mode="bicubic", align_corners=False, antialias=antialias)
    spare_h, spare_w = size - x.shape[-2], size - x.shape[-1]
    top, left = spare_h // 2, spare_w // 2
    return torch.nn.functional.pad(x, (left, spare_w - left, top, spare_h - top))[0]


def normalise(
    x: Float[Tensor, "n 3 h w"], mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> Float[Tensor, "n 3 h w"]:
    """Images in [0, 1] as (x - mean) / std for each colour."""
    shape = (1, 3, 1, 1)
    return (x - x.new_tensor(mean).view(shape)) / x.new_tensor(std).view(shape)


def in_batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in order, `size` at a time."""
    if size < 1:
        raise ValueError(f"batch_size must be 1 or above, got {size}.")
    for start in range(0, len(items), size):
        yield items[start : start + size]


def unique(prompts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Each prompt once, in first order, and the place of every given prompt among them."""
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    return list(places), [places[prompt] for prompt in prompts]
