"""The files of MNIST and Fashion-MNIST (idx): grey images and their class numbers."""

import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from diffpref.data.rows import Preferences, Row

_SPLITS = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class _Reader:
    images: np.ndarray
    labels: np.ndarray
    where: str

    def __call__(self, number: int) -> Row:
        stream = io.BytesIO()
        Image.fromarray(self.images[number]).save(stream, "PNG")
        return Row(
            prompt=str(self.labels[number]),
            images=(stream.getvalue(),),
            scores=(1.0,),
            where=f"{self.where} row {number}",
        )


def read_idx(folder: Path, *, split: str, max_rows: int | None) -> Preferences:
    """The images of a split, one a row with its class number as the prompt; each becomes a PNG file when it is read.

    Raises:
        ValueError: another split than train or test, a file that is missing or damaged, or labels of other images.
    """
    if split not in _SPLITS:
        raise ValueError(f"{folder} holds idx files, of which split must be train or test (t10k), got {split!r}.")
    prefix = _SPLITS[split]
    images_file, labels_file = (
        _find(folder, f"{prefix}-{content}") for content in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    images, labels = _array(images_file, 3), _array(labels_file, 1)
    if len(images) != len(labels):
        raise ValueError(
            f"{images_file} has {len(images)} images and {labels_file.name} {len(labels)} labels: "
            "they must belong together, one label for each image."
        )
    if images.size == 0:
        raise ValueError(f"{images_file} holds no image: its axes are {images.shape}.")
    count = len(images) if max_rows is None else min(max_rows, len(images))
    return Preferences(
        source=str(folder),
        schema="images and labels (idx)",
        read=_Reader(images, labels, images_file.name),
        index=range(count),
        scores=[(1.0,)] * count,
        dropped={},
        log=(f"read: {count} rows, {count} kept",),
    )


def _find(folder: Path, name: str) -> Path:
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise ValueError(f"{folder} has neither {name} nor {name}.gz: add one of them, or ask for the other split.")
    return path


def _array(path: Path, axes: int) -> np.ndarray:
    """The unsigned bytes of an idx file: 0, 0, 8 (uint8), the number of axes, each axis as a big-endian integer."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as problem:
        raise ValueError(f"{path} cannot be unpacked ({problem}): get the file again.") from None
    header = 4 + 4 * axes
    if data[:4] != bytes((0, 0, 8, axes)) or len(data) < header:
        raise ValueError(f"{path} is no idx file of unsigned bytes with {axes} axes: it starts with {data[:4].hex()}.")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", axes, 4))
    if len(data) - header != np.prod(shape, dtype=object):
        raise ValueError(f"{path} is cut short or too long: {len(data) - header} bytes for axes {shape}; get it again.")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
