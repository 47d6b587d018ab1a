"""How images become tensors and latents: resized, cropped, perhaps mirrored, and what the autoencoder makes of them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffpref.backbones import Encoder, PosteriorEncoder
from diffpref.data.decode import ImageSource, image_size

Posterior: TypeAlias = Literal["kept", "fresh", "mean"]


class Told(NamedTuple):
    """What SDXL is told of a group's images: their size before resizing, and where the crop begins, in pixels."""

    height: int
    width: int
    top: int
    left: int
    mirrored_left: int
    """Of the crop in the mirrored image."""


@dataclass(frozen=True)
class Framing:
    """How images become tensors: resized on the shorter side, cropped to a square, perhaps mirrored, and encoded."""

    resolution: int
    crop: str = "center"
    flip: bool = False
    seed: int = 0
    posterior: Posterior = "kept"
    """Keep one draw of the autoencoder's posterior, its mean and deviation for fresh draws, or its mean alone."""
    sizes: bool = False
    """Keep the images' sizes and crops too."""

    def offset(self, where: str) -> tuple[float, float]:
        """Where a group's crop lies between the edges (0 to 1); shared by its images."""
        if self.crop == "center":
            return 0.5, 0.5
        place = random.Random(f"{self.seed}/{where}")
        return place.random(), place.random()

    def told(self, source: ImageSource, offset: tuple[float, float]) -> Told:
        """The size and the crop of an image, from its header."""
        size = image_size(source)
        (width, _), (left, top) = resized(size, self.resolution, offset)
        return Told(size[1], size[0], top, left, width - self.resolution - left)

    def encode(
        self, encoder: Encoder, pictures: Tensor, draws: Sequence[torch.Generator], dtype: torch.dtype
    ) -> list[dict[str, Tensor]]:
        """What is kept of each picture: its latent in dtype, and for fresh draws the posterior's deviation `std`."""
        if self.posterior == "kept":
            return [{"latent": latent} for latent in encoder.encode_pictures(pictures, draws).to(dtype)]
        assert isinstance(encoder, PosteriorEncoder), "checked before"
        mean, std = (each.to(dtype) for each in encoder.encode_posteriors(pictures))
        if self.posterior == "mean":
            return [{"latent": latent} for latent in mean]
        return [{"latent": latent, "std": deviation} for latent, deviation in zip(mean, std, strict=True)]


def check_posterior(encoder: Encoder, posterior: Posterior) -> None:
    """Raise ValueError where pictures have no posterior, and its mean or fresh draws are asked for."""
    if posterior != "kept" and not isinstance(encoder, PosteriorEncoder):
        raise ValueError(
            f"posterior: {posterior} is for backbones with an autoencoder; this one sees pixels: leave posterior out."
        )


def resized(
    size: tuple[int, int], resolution: int, offset: tuple[float, float]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size to which an image is resized, width first, and the left and top of its crop there."""
    width, height = size
    scale = resolution / min(width, height)
    new = max(resolution, round(width * scale)), max(resolution, round(height * scale))
    left, top = (round(place * (side - resolution)) for place, side in zip(offset, new, strict=True))
    return new, (left, top)


def to_square(image: Image.Image, resolution: int, offset: tuple[float, float]) -> Tensor:
    """The image as "3 r r" in [-1, 1]: shorter side to the resolution (Lanczos), then cropped at the offset."""
    size, (left, top) = resized(image.size, resolution, offset)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    image = image.crop((left, top, left + resolution, top + resolution))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
