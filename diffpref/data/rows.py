"""What preference data is: a prompt, its pictures, their scores; and the lazy collection of such rows."""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from PIL import Image, UnidentifiedImageError

Picture: TypeAlias = bytes | Path
"""An encoded picture (PNG, JPEG, WebP, ...), or the path of one."""

# EXIF orientation -> the transposition that shows the picture upright (EXIF 2.32, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadRow(ValueError):
    """A row that cannot be used: `reason` is what is counted, the message what is shown."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Row:
    """The pictures of one prompt; scores[i] belongs to pictures[i] and higher is better."""

    prompt: str
    pictures: tuple[Picture, ...]
    scores: tuple[float, ...]
    where: str
    """What an error message names, like "pairs.parquet row 12"; rows count from 0."""
    models: tuple[str, ...] = ()
    """Which model made each picture; empty where the source does not say."""


def _open(picture: Picture) -> tuple[Image.Image, str]:
    name = str(picture) if isinstance(picture, Path) else f"picture of {len(picture)} bytes"
    try:
        return Image.open(picture if isinstance(picture, Path) else io.BytesIO(picture)), name
    except FileNotFoundError:
        raise BadRow("missing picture", f"{name} does not exist: restore the file, or correct its path.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        empty = not picture if isinstance(picture, bytes) else picture.is_file() and picture.stat().st_size == 0
        what = "is empty (0 bytes)" if empty else f"is not a picture that Pillow can open ({problem})"
        raise BadRow("unreadable picture", f"{name} {what}: replace it.") from None


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn the picture upright, from its header alone; a TIFF is turned by Pillow itself."""
    if image.format == "TIFF" or not {"exif", "Raw profile type exif"} & set(image.info):
        return None
    return _UPRIGHT.get(image.getexif().get(0x0112, 1))


def picture_size(picture: Picture) -> tuple[int, int]:
    """Width and height in pixels of the upright picture, from its header.

    Raises:
        BadRow (a ValueError): the file is missing, empty or no picture.
    """
    image, _ = _open(picture)
    with image:
        turned = _turn(image) in {_UPRIGHT[5], _UPRIGHT[6], _UPRIGHT[7], _UPRIGHT[8]}
        return (image.height, image.width) if turned else (image.width, image.height)


def decode(picture: Picture) -> Image.Image:
    """The picture in RGB, upright by its EXIF orientation, with transparency composited on white.

    Raises:
        BadRow (a ValueError): the file is missing, empty, truncated or no picture.
    """
    image, name = _open(picture)
    try:
        with image:
            turn = _turn(image)
            image.load()
            upright = image.transpose(turn) if turn is not None else image
            return _rgb(upright)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as problem:
        raise BadRow("unreadable picture", f"{name} is corrupt or cut short ({problem}): replace it.") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit grey to white.
        return image.convert("I").point(lambda v: v * (1 / 256)).convert("L").convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class Preferences:
    """Rows that are read when they are asked for: `len`, indexing and iteration; only scores are kept in memory."""

    source: str
    schema: str
    """What was detected, for people."""
    read: Callable[[int], Row]
    """Reads the row of a number in `index`."""
    index: Sequence[int]
    """The numbers of the kept rows."""
    scores: Sequence[tuple[float, ...]]
    """The scores of the kept rows, so that sampling and pairing open no picture."""
    dropped: dict[str, int]
    """How many rows (after `as_pairs`: rows and pairs) were left out, for each reason."""
    log: tuple[str, ...] = ()
    """One line for each step that made this collection."""
    read_prompt: Callable[[int], str] | None = None
    """Reads the prompt alone of a number in `index`, where the source can do so without its pictures."""

    def __post_init__(self) -> None:
        assert len(self.index) == len(self.scores), "one tuple of scores for each kept row"

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, position: int) -> Row:
        return self.read(int(self.index[position]))

    def prompt(self, position: int) -> str:
        """The prompt of a row; its pictures are not read where the source allows that."""
        return self.read_prompt(int(self.index[position])) if self.read_prompt else self[position].prompt

    def __iter__(self) -> Iterator[Row]:
        return (self[position] for position in range(len(self)))

    def subset(self, positions: Sequence[int], *, dropped: Mapping[str, int], step: str) -> "Preferences":
        """The rows at these positions; `dropped` counts why the others went and `step` names who dropped them."""
        if not positions:
            raise ValueError(f"{self.source}: no row is left after {step}: {count_reasons(dropped)}.")
        line = f"{step}: {len(self)} rows, {len(positions)} kept{count_dropped(dropped)}"
        return replace(
            self,
            index=[int(self.index[p]) for p in positions],
            scores=[self.scores[p] for p in positions],
            dropped=dict(Counter(self.dropped) + Counter(dropped)),
            log=(*self.log, line),
        )

    def summary(self) -> str:
        """What was detected, and how many rows each step read, kept and dropped, for people to read."""
        return "\n".join([f"source: {self.source}", f"schema: {self.schema}", *self.log])


def count_reasons(dropped: Mapping[str, int]) -> str:
    """The counts in words: "2 tie, 1 no label"."""
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "there was none"


def count_dropped(dropped: Mapping[str, int]) -> str:
    """The end of a summary line: ", 3 dropped (2 tie, 1 no label)", or nothing."""
    return f", {sum(dropped.values())} dropped ({count_reasons(dropped)})" if dropped else ""
