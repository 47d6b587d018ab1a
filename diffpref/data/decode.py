"""Images as files: where their bytes are, their size, and their pixels in RGB."""

import io
from pathlib import Path
from typing import TypeAlias

from PIL import Image, UnidentifiedImageError

from diffpref.data.bad_row import BadRow

ImageSource: TypeAlias = bytes | Path
"""An encoded image (PNG, JPEG, WebP, ...), or the path of one."""

# EXIF orientation -> the transposition that shows the image upright (EXIF 2.32, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def encoded_bytes(source: ImageSource) -> bytes:
    """The image as it is kept: the bytes of its file."""
    return source if isinstance(source, bytes) else source.read_bytes()


def _open(source: ImageSource) -> tuple[Image.Image, str]:
    name = str(source) if isinstance(source, Path) else f"image of {len(source)} bytes"
    try:
        return Image.open(source if isinstance(source, Path) else io.BytesIO(source)), name
    except FileNotFoundError:
        raise BadRow("missing image", f"{name} does not exist: restore the file, or correct its path.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        empty = not source if isinstance(source, bytes) else source.is_file() and source.stat().st_size == 0
        what = "is empty (0 bytes)" if empty else f"is not an image that Pillow can open ({problem})"
        raise BadRow("unreadable image", f"{name} {what}: replace it.") from None


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn the image upright, from its header alone; a TIFF is turned by Pillow itself."""
    if image.format == "TIFF" or not {"exif", "Raw profile type exif"} & set(image.info):
        return None
    return _UPRIGHT.get(image.getexif().get(0x0112, 1))


def image_header(source: ImageSource) -> tuple[tuple[int, int], str]:
    """Width and height in pixels of the upright image, and the file's format like "JPEG"; no pixel is decoded.

    Raises:
        BadRow (a ValueError): the file is missing, empty or no image.
    """
    image, _ = _open(source)
    with image:
        turned = _turn(image) in {_UPRIGHT[5], _UPRIGHT[6], _UPRIGHT[7], _UPRIGHT[8]}
        return (image.height, image.width) if turned else (image.width, image.height), image.format or "unknown"


def image_size(source: ImageSource) -> tuple[int, int]:
    """Width and height in pixels of the upright image, from its header.

    Raises:
        BadRow (a ValueError): the file is missing, empty or no image.
    """
    return image_header(source)[0]


def decode(source: ImageSource) -> Image.Image:
    """The image in RGB, upright by its EXIF orientation, with transparency composited on white.

    Raises:
        BadRow (a ValueError): the file is missing, empty, truncated or no image.
    """
    image, name = _open(source)
    try:
        with image:
            turn = _turn(image)
            image.load()
            upright = image.transpose(turn) if turn is not None else image
            return _rgb(upright)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as problem:
        raise BadRow("unreadable image", f"{name} is corrupt or cut short ({problem}): replace it.") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit grey to white.
        return image.convert("I").point(lambda v: v * (1 / 256)).convert("L").convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
