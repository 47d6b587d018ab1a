"""JPEG compressibility: a reward that needs no model, for trying out whether learning from a reward works."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffpref.rewards.checkpoint import versions
from diffpref.rewards.vision import rgb
from diffpref.settings import bounds


@dataclass(frozen=True)
class JpegSettings:
    """Which sizes are rewarded, small ones or large ones."""

    quality: Annotated[int, Ge(1), Le(100)] = 95
    """JPEG's quality setting."""
    incompressible: bool = False
    """Reward large files instead."""

    def __post_init__(self) -> None:
        bounds.check(self)

    def load(self, device: torch.device) -> "Jpeg":
        """The reward; it computes on the CPU, whatever the device."""
        return Jpeg(self)


class Jpeg:
    """The size of the image as a JPEG file; it does not look at the prompts."""

    def __init__(self, settings: JpegSettings) -> None:
        self.settings = settings
        self.provenance = {
            "scorer": "jpeg_compressibility",
            "checkpoint": "none",
            "dtype": "8 bit",
            "unit": "kB of 1000 bytes" if settings.incompressible else "minus kB of 1000 bytes",
            "preprocessing": f"RGB, JPEG at quality {settings.quality}",
            **versions("pillow"),
        }

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """Minus the kB (1000 bytes) of each image's JPEG, or plus (DDPO, arXiv 2305.13301;
        kvablack/ddpo-pytorch:ddpo_pytorch/rewards.py, jpeg_compressibility)."""
        sign = 1 if self.settings.incompressible else -1
        return torch.tensor([sign * self._bytes(image) / 1000 for image in images], dtype=torch.float32)

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Raises ValueError: nobody's preferences stand behind a file's size."""
        raise ValueError(
            "reward 'jpeg_compressibility' has no pair_logit: kB say which file is smaller, not how probable it is "
            "that an image is preferred. Use the order of the scores, or a reward that was trained on preferences."
        )

    def _bytes(self, image: Image.Image) -> int:
        stream = io.BytesIO()
        rgb(image).save(stream, "JPEG", quality=self.settings.quality)
        return stream.tell()
