"""What the tests of a reward's training read of a run, and the images that it learns from."""

import io
import json
from pathlib import Path

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
    # Noise, so that no two images are the same.
    noise = Image.effect_noise(size, 30).point(lambda v: min(255, max(0, v - 128 + level)))
    noise.convert("RGB").save(stream, "PNG")
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
