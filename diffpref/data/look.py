"""What an image looks like in a few numbers, from its header alone or from its pixels."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from diffpref.data.decode import ImageSource, decode, encoded_bytes, image_header

SIDE = 512
"""Side of the grey square on which brightness and sharpness are measured, in pixels, where no resolution is given."""


ALIKE = 2
"""Grey levels of 256 by which no cell of 16 x 16 may differ in images that look the same: JPEG at quality 75 differs by
1 or 2, even of noise; two drawings of one emoji by 93 and more."""


@dataclass(frozen=True)
class Pixels:
    """What only a decoded image says."""

    brightness: float
    """Mean grey, in [0, 1]."""
    sharpness: float
    """Standard deviation of the grey's Laplacian over that of the grey itself: fine detail whatever the contrast."""
    plain: bool
    """Whether all pixels have one colour."""
    digest: bytes
    """Of the decoded pixels: equal for equal images, whatever file they are in."""
    small: bytes
    """16 x 16 grey levels, which survive another format or quality."""


@dataclass(frozen=True)
class Look:
    """One image of a row."""

    size: tuple[int, int]
    """Width and height in pixels, upright."""
    format: str
    """The file's format, like "JPEG"."""
    pixels: Pixels | None = None
    """None where only the header was read."""


def look_at(source: ImageSource, *, decoded: bool, side: int = SIDE) -> Look:
    """The look of an image.

    Args:
        decoded: read its pixels too, which also finds files that are cut short.
        side: images are brought to a square of so many pixels, as training does, before sharpness is measured.

    Raises:
        BadRow (a ValueError): the file is missing, empty, truncated or no image.
    """
    size, kind = image_header(source)
    if not decoded:
        return Look(size, kind)
    image = decode(source)
    return Look(image.size, kind, _pixels(image, side))


def _pixels(image: Image.Image, side: int) -> Pixels:
    digest = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).digest()
    grey = np.asarray(ImageOps.fit(image.convert("L"), (side, side), Image.Resampling.BILINEAR), np.float32) / 255
    inner = grey[1:-1, 1:-1]
    laplacian = 4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    contrast = float(grey.std())
    plain = all(low == high for low, high in image.getextrema())  # type: ignore[misc]
    sharpness = 0.0 if contrast < 1e-3 or side < 3 else float(laplacian.std()) / contrast
    small = ImageOps.fit(image.convert("L"), (16, 16), Image.Resampling.BOX).tobytes()
    return Pixels(float(grey.mean()), sharpness, plain, digest, small)


def alike(one: Pixels, other: Pixels) -> bool:
    """Whether two images look the same though their pixels differ: saved in another format or quality."""
    levels = (np.frombuffer(pixels.small, np.uint8).astype(np.int16) for pixels in (one, other))
    return one.digest != other.digest and bool(np.abs(np.subtract(*levels)).max() <= ALIKE)


def same_file(one: ImageSource, other: ImageSource) -> bool:
    """Whether two images are the same bytes; files of different lengths are not read."""
    if isinstance(one, Path) and isinstance(other, Path):
        if one == other:
            return True
        if one.stat().st_size != other.stat().st_size:
            return False
    return encoded_bytes(one) == encoded_bytes(other)
