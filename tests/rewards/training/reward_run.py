"""What the tests of a reward's training read of a run, and the images that it learns from."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from diffpref.rewards.training.config import Pairs
from diffpref.rewards.training.data import PairData, read_pairs
from diffpref.rewards.training.labels import OrderLabels

SIZE = 16


def png(level: int, size: tuple[int, int] = (SIZE, SIZE)) -> bytes:
    """An image of about this brightness, in [0, 255]."""
    stream = io.BytesIO()
    # Noise, so that no two brightnesses have images alike. Pillow's own is of the process, not of a seed.
    noise = np.random.default_rng([level, *size]).normal(level, 30, (size[1], size[0], 1))
    Image.fromarray(noise.clip(0, 255).astype(np.uint8).repeat(3, 2)).save(stream, "PNG")
    return stream.getvalue()


def read(pairs: Path) -> PairData:
    """The pairs of a file as the default settings read them."""
    return read_pairs(Pairs(), OrderLabels(), str(pairs))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's reward."""
    return load_file(folder / "model" / "model.safetensors")


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what depends on the machine."""
    timed = {"seconds_per_step", "peak_memory_gib"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]
