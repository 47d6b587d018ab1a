"""Fashion-MNIST from Debian's package `dataset-fashion-mnist` (MIT): 28 x 28 grey pictures in ten classes."""

import gzip
from pathlib import Path

import numpy as np
import torch

FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "t-shirt or top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def _read(path: Path) -> np.ndarray:
    """An IDX file: two zero bytes, the type (8 is uint8), the number of axes, the axes as big-endian integers."""
    data = gzip.decompress(path.read_bytes())
    assert data[:3] == b"\0\0\x08", path
    axes = np.frombuffer(data, ">i4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(axes)


def load(split: str, folder: Path = FOLDER) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures "n 1 28 28" in [-1, 1] and labels "n" of the split "train" (60,000) or "t10k" (10,000)."""
    pictures = torch.from_numpy(_read(folder / f"{split}-images-idx3-ubyte.gz").copy())[:, None].float() / 127.5 - 1
    return pictures, torch.from_numpy(_read(folder / f"{split}-labels-idx1-ubyte.gz").copy()).long()
