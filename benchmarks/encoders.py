"""The autoencoder and the text encoders of an architecture on meta tensors: what a script without a cache also runs."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpref.counting.architectures import Architecture


@dataclass(frozen=True)
class Encoders:
    """Frozen, the autoencoder in float32 as the scripts have it, and the text encoders in the training's precision."""

    vae: torch.nn.Module
    text: tuple[torch.nn.Module, ...]
    lengths: tuple[int, ...]

    def parameters(self) -> Iterator[Tensor]:
        """All weights."""
        for part in (self.vae, *self.text):
            yield from part.parameters()

    @torch.no_grad()
    def run(self, pictures: int, prompts: int, side: int) -> None:
        """Latents of the pictures, one by one as a batch of 1024 pixels would not fit, and the prompts' embeddings."""
        for _ in range(pictures):
            self.vae.encode(torch.empty(1, 3, side, side, device="meta"))  # type: ignore[operator]
        for encoder, length in zip(self.text, self.lengths, strict=True):
            encoder(torch.zeros(prompts, length, dtype=torch.long, device="meta"))


def build_encoders(architecture: Architecture, dtype: torch.dtype) -> Encoders:
    """The encoders of the architecture's configurations.

    Raises:
        ValueError: an architecture without an autoencoder, such as one in pixel space.
    """
    if architecture.vae is None:
        raise ValueError(f"{architecture.name} has no autoencoder to count.")
    import diffusers
    import transformers

    with torch.device("meta"):
        vae = getattr(diffusers, architecture.vae["_class_name"]).from_config({**architecture.vae})
        text = []
        for given in architecture.text:
            kind = getattr(transformers, given["architectures"][0])
            text.append(kind(kind.config_class(**given)))
    parts = [part.to(dtype).requires_grad_(False).eval() for part in text]
    return Encoders(vae.requires_grad_(False).eval(), tuple(parts), architecture.text_lengths)
