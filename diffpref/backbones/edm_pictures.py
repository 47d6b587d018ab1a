"""EDM's pictures and prompts: patches of pixels, and classes by name or number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DModel
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from diffpref.backbones.checkpoint import Checkpoint
from diffpref.backbones.loading import read_config
from diffpref.pipelines.edm import EDMPipeline, picture_shape, pil_pictures
from diffpref.types import Cond

MOST_LABELS = 2049
"""The cache keeps labels as float16, in which the integers up to 2048 are exact."""
SHOWN_CLASSES = 20
"""How many class names an error message lists."""


class EDMEncoder:
    """Pictures to the network's patches, and prompts to labels; no weights."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        unet = read_config(UNet2DModel, checkpoint, "unet")
        index = read_config(EDMPipeline, checkpoint)
        self.patch_size: int = index.get("patch_size", 1)
        self.classes: Sequence[str] | None = index.get("classes")
        self.channels, self.side = picture_shape(unet, self.patch_size)
        self.labels: int | None = unet.get("num_class_embeds")
        if self.labels is not None and self.labels > MOST_LABELS:
            raise ValueError(f"{checkpoint.source} has {self.labels} labels; at most {MOST_LABELS} are supported.")
        self.identity = (
            f"edm {self.channels} x {self.side}, patch {self.patch_size}, {self.labels} labels, {self.classes}"
        )

    def encode_pictures(
        self, pictures: Float[Tensor, "n 3 h w"], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "n c hp wp"]:
        """The pictures in patches, grey (the mean of the channels) where the network is; no generator is used."""
        check_side(self.side, *pictures.shape[-2:])
        if self.channels == 1:
            pictures = pictures.mean(1, keepdim=True)
        return pixel_unshuffle(pictures, self.patch_size)

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """labels "n": each prompt is a class's name or number, or empty for none."""
        return {"labels": torch.tensor([find_class(prompt, self.labels, self.classes) for prompt in prompts])}


def find_class(text: str, count: int | None, names: Sequence[str] | None) -> int:
    """The label of a class, given by its name (case does not matter) or its number; empty text is no class.

    Args:
        count: labels of the network, of which the last stands for no class; None for a network without classes.
        names: the name of each class, where the pipeline has them.

    Raises:
        ValueError: no such class; names the text and the classes there are.
    """
    wanted = text.strip().casefold()
    if not wanted:
        return 0 if count is None else count - 1
    if count is None:
        raise ValueError(f"prompt {text!r}: this model has no classes, so that every prompt must be empty.")
    folded = [name.casefold() for name in names or ()]
    if wanted in folded:
        return folded.index(wanted)
    if wanted.isdecimal() and int(wanted) < count - 1:
        return int(wanted)
    known = f"a number from 0 to {count - 2}"
    if names:
        more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
        known += f", or one of {', '.join(names[:SHOWN_CLASSES])}{more}"
    raise ValueError(f"prompt {text!r} is no class of this model: give {known}; empty for no class.")


def check_side(side: int, *sides: int) -> None:
    """Raise ValueError where pictures do not have the one size that the network was built for."""
    if any(given != side for given in sides):
        size = " x ".join(str(given) for given in sides)
        raise ValueError(f"this model's pictures are {side} x {side} pixels, not {size}: set resolution: {side}.")


@dataclass(frozen=True)
class EDMDecoder:
    """The pipeline around a network."""

    pipeline: EDMPipeline

    def __post_init__(self) -> None:
        self.pipeline.set_progress_bar_config(disable=True)

    def sample(
        self,
        prompts: Cond,
        empty: Cond,
        *,
        resolution: int,
        seeds: Sequence[int],
        steps: int,
        guidance_scale: float,
        batch_size: int,
    ) -> list[Image.Image]:
        """One picture for each prompt, each from its own seed: the pictures the pipeline gives for these seeds.

        Guidance is against the pipeline's own label for no class, which `empty` is."""
        check_side(picture_shape(self._unet, self._patch_size)[1], resolution, resolution)
        pictures: list[Image.Image] = []
        for first in range(0, len(seeds), batch_size):
            part = slice(first, first + batch_size)
            labels = prompts["labels"][part]
            pictures += self.decode(self.latents(labels, seeds=seeds[part], steps=steps, guidance_scale=guidance_scale))
        return pictures

    def latents(
        self, labels: Tensor, *, seeds: Sequence[int], steps: int, guidance_scale: float
    ) -> Float[Tensor, "n c h w"]:
        """Where the pipeline's sampler ends, in patches; all labels in one batch."""
        given = None if self._unet["num_class_embeds"] is None else labels.round().long().tolist()
        return self.pipeline(
            batch_size=len(seeds),
            class_labels=given,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="latent",
        ).images

    def decode(self, latents: Float[Tensor, "n c h w"]) -> list[Image.Image]:
        """PIL pictures of what the network sees; grey where it is."""
        return pil_pictures(pixel_shuffle(latents, self._patch_size))

    def latent_shape(self, resolution: int) -> tuple[int, ...]:
        """Channels, height and width of one picture as the network sees it."""
        side = self._unet["sample_size"]
        return self._unet["in_channels"], side, side

    @property
    def _unet(self) -> Any:
        return self.pipeline.unet.config

    @property
    def _patch_size(self) -> int:
        return self.pipeline.config["patch_size"]
