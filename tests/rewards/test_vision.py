"""Pictures as the published code sees them, to 1e-6 after the normalisation, on ten kinds of them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffpref.rewards.vision import (
    CLIP_MEAN,
    CLIP_STD,
    in_batches,
    letterbox,
    normalise,
    to_pixels,
    torchvision_square,
    transformers_square,
    unique,
)

SIZE = 32
"""Every rule takes any size; 224 as well in one test of each."""


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    """Smooth colours under hard noise, so that a shift by a pixel, and an overshoot, show."""
    random = np.random.default_rng(width * 1000 + height)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([(x * (3 + c) + y * (7 - c)) % 256 for c in range(channels)], -1)
    array = np.where(random.random((height, width, 1)) < 0.2, random.integers(0, 256, smooth.shape), smooth)
    return Image.fromarray(array.astype(np.uint8) if channels > 1 else array.astype(np.uint8)[..., 0])


def palette(width: int, height: int) -> Image.Image:
    image = noise(width, height).convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
    image.info["transparency"] = 3
    return image


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "square": lambda: noise(70, 70),
    "portrait": lambda: noise(45, 97),
    "landscape": lambda: noise(128, 50),
    "odd surplus": lambda: noise(64, 43),  # 47 wide after the resize: 15 are cut
    "odd surplus, other way": lambda: noise(35, 50),  # 45 high: 13 are cut
    "small": lambda: noise(13, 9),
    "very long": lambda: noise(400, 21),
    "the size already": lambda: noise(32, 32),
    "the shorter side already": lambda: noise(32, 41),
    "the longer side already": lambda: noise(20, 32),
    "grey": lambda: noise(61, 44, 1),
    "grey with alpha": lambda: noise(61, 44, 4).convert("LA"),
    "alpha": lambda: noise(61, 44, 4),
    "palette": lambda: palette(61, 44),
    "1 bit": lambda: noise(61, 44).convert("1"),
}


@pytest.fixture(params=PICTURES)
def picture(request: pytest.FixtureRequest) -> Image.Image:
    return PICTURES[request.param]()


def near(ours: Tensor, theirs: Tensor) -> None:
    """To 1e-6 of float32's numbers of up to 2.7: both are exact up to the order of a division or two."""
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def seen(square: Tensor) -> Tensor:
    return normalise((square.float() / 255 if square.dtype == torch.uint8 else square)[None])[0]


def processor(size: int, crop: int):
    from transformers import CLIPImageProcessorPil

    crops = {"height": crop, "width": crop}
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=crops)


def of_transformers(image: Image.Image, size: int, crop: int) -> Tensor:
    """Converted as its release of PickScore's and MPS's time converts, and as MPS does itself; 5.24 puts what is
    transparent on white instead."""
    image = image.convert("RGB")
    image.info.clear()
    return torch.as_tensor(np.asarray(processor(size, crop)(image)["pixel_values"][0]))


@pytest.mark.parametrize(("size", "crop"), [(SIZE, SIZE), (40, 31)])
def test_transformers_square(picture: Image.Image, size: int, crop: int) -> None:
    near(seen(transformers_square(picture, size, crop=crop)), of_transformers(picture, size, crop))


def test_torchvision_square(picture: Image.Image) -> None:
    """open_clip's own preprocess_val: Resize, CenterCrop, to RGB, ToTensor, Normalize of torchvision."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    near(seen(torchvision_square(picture, SIZE)), image_transform_v2(PreprocessCfg(size=SIZE), is_train=False)(picture))


def hpsv2(image: Image.Image, size: int, *, antialias: bool) -> Tensor:
    """tgxs002/HPSv2's steps with torchvision's functions, of which the published one was antialias=False."""
    import torchvision.transforms.functional as V

    x = V.to_tensor(image.convert("RGB"))
    height, width = x.shape[1:]
    new = [round(height * (size / max(height, width))), round(width * (size / max(height, width)))]
    x = V.resize(x, new, V.InterpolationMode.BICUBIC, antialias=antialias)
    above, before = (size - new[0]) // 2, (size - new[1]) // 2
    x = V.pad(x, [before, above, size - new[1] - before, size - new[0] - above], fill=0)
    return V.normalize(x, CLIP_MEAN, CLIP_STD)


@pytest.mark.parametrize("antialias", [False, True])
def test_letterbox(picture: Image.Image, antialias: bool) -> None:
    near(seen(letterbox(picture, SIZE, antialias=antialias)), hpsv2(picture, SIZE, antialias=antialias))


@pytest.mark.parametrize(("width", "height"), [(640, 427), (1024, 1024), (300, 453)])
def test_the_published_size(width: int, height: int) -> None:
    """224 pixels; at 640 x 427 the two libraries' middles are a pixel apart, and antialiasing shows."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    image = noise(width, height)
    one, other = seen(transformers_square(image, 224)), seen(torchvision_square(image, 224))
    near(one, of_transformers(image, 224, 224))
    near(other, image_transform_v2(PreprocessCfg(size=224), is_train=False)(image))
    assert ((one - other).abs().max() > 1).item() == ((width, height) == (640, 427))
    boxes = [seen(letterbox(image, 224, antialias=antialias)) for antialias in (False, True)]
    for antialias, box in zip((False, True), boxes, strict=True):
        near(box, hpsv2(image, 224, antialias=antialias))
    assert (boxes[0] - boxes[1]).abs().max() > 0.5


def test_transparency_is_dropped_and_colour_kept() -> None:
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    assert to_pixels(image).flatten().tolist() == [10, 10, 20, 20, 30, 30]


def test_a_picture_too_long_for_its_letterbox_is_named() -> None:
    assert letterbox(noise(63, 1), 32, antialias=False).shape == (3, 32, 32)
    with pytest.raises(ValueError, match=r"64 x 1 pixels is too long for a square of 32.* at most 63 : 1"):
        letterbox(noise(64, 1), 32, antialias=False)


def test_batches_and_unique_prompts() -> None:
    assert [list(b) for b in in_batches([1, 2, 3, 4, 5], 2)] == [[1, 2], [3, 4], [5]]
    assert list(in_batches([], 2)) == []
    with pytest.raises(ValueError, match="batch_size must be 1 or above, got 0"):
        list(in_batches([1], 0))
    assert unique(["b", "a", "b", ""]) == (["b", "a", ""], [0, 1, 0, 2])
    assert unique([]) == ([], [])
