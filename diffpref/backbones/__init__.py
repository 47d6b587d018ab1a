"""Backbones: diffusers pipelines seen as a network on a path. One family is one file and a row in FAMILIES.

`open_backbone` picks the family by the class that the pipeline's folder names. A family is a frozen dataclass that
holds its checkpoint and its own times; nothing that it answers needs either of them again.
"""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from diffpref.backbones.checkpoint import Checkpoint, pipeline_class
from diffpref.backbones.shape import Shape
from diffpref.backbones.single_file import pipeline_folder
from diffpref.backbones.times import Times
from diffpref.path import GaussianPath
from diffpref.transition import StepRule
from diffpref.types import Backbone, Cond

FAMILIES = {
    "StableDiffusionXLPipeline": "diffpref.backbones.sdxl:SDXL",
    "StableDiffusionPipeline": "diffpref.backbones.sd15:SD15",
    "StableDiffusion3Pipeline": "diffpref.backbones.sd3:SD3",
    "EDMPipeline": "diffpref.backbones.edm:EDM",
}
"""The family of each class of pipelines, imported when one is opened."""


@runtime_checkable
class Encoder(Protocol):
    """Pictures and prompts to what the network sees; held in memory only while the cache is filled."""

    @property
    def identity(self) -> str:
        """Names the weights and their precision: equal identities encode equally."""
        ...

    def encode_pictures(self, pictures: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Latents of pictures "n 3 h w" in [-1, 1], each drawn with its own generator."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The prompts' tensors, first axis n; with masks as in `prompts.collate` where their lengths differ."""
        ...


@runtime_checkable
class PosteriorEncoder(Encoder, Protocol):
    """An encoder whose autoencoder gives a distribution of latents for a picture."""

    def encode_posteriors(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of pictures "n 3 h w" in [-1, 1]; ValueError where it has none."""
        ...


@runtime_checkable
class Sized(Protocol):
    """A family whose network is told how large its pictures were, and where they were cropped."""

    def size_ids(self, framing: Tensor, resolution: int) -> Tensor:
        """What it is told, "b d", of framings "b 4": height and width before resizing, top and left of the crop."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """A network with what turns its latents into pictures."""

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
        """One picture for each prompt, each from its own seed: what a stock pipeline draws from these seeds."""
        ...

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """The pictures of latents in the network's units."""
        ...

    def latent_shape(self, resolution: int) -> tuple[int, ...]:
        """Channels, height and width of one picture as the network sees it."""
        ...


@runtime_checkable
class Kind(Protocol):
    """A family before it is opened: its class, with what needs no checkpoint."""

    component: str
    """The pipeline's folder of the network that is trained."""
    networks: tuple[str, ...]
    """The classes of diffusers that this network may be of."""
    lora_targets: tuple[str, ...]
    """Layers that get LoRA by default; empty where the backbone is trained as a whole only."""
    side: int
    """Pictures' sides are multiples of this, in pixels."""

    def open(self, checkpoint: Checkpoint, times: Times, resolution: int) -> "Family":
        """The family with its own times; ValueError for times of other families.

        Args:
            resolution: of the run's pictures, in pixels, where the times depend on it.
        """
        ...

    def meta_backbone(self, network: torch.nn.Module) -> Backbone:
        """A network without a checkpoint, for counting: on a path of this kind with usual values."""
        ...

    def shape(self, config: Mapping[str, Any], resolution: int, lengths: Sequence[int], tokens: int | None) -> Shape:
        """One candidate's tensors for a network of this configuration.

        Args:
            resolution: of the picture, in pixels.
            lengths: tokens of each text encoder's prompt.
            tokens: length of the prompt as the network sees it; None follows from the encoders.
        """
        ...

    def prompt_tokens(self, lengths: Sequence[int], longest: int) -> int | None:
        """Length of the prompt as the network sees it; None where the encoders alone decide it.

        Args:
            longest: max_sequence_length of the settings.
        """
        ...


@runtime_checkable
class Family(Kind, Protocol):
    """An opened backbone: a pipeline's network, its path, its times, and the way in and out."""

    step: StepRule
    """The stochastic sampler of on-policy chains."""
    pipeline: str
    """The class that a user loads the pipeline with, like "diffusers:DiffusionPipeline"."""
    call: str
    """Python that draws with this pipeline, named `pipe`, with the place {prompt}."""

    @property
    def checkpoint(self) -> Checkpoint: ...

    @property
    def path(self) -> GaussianPath:
        """The path that the network was trained on; read once."""
        ...

    def load_network(self, dtype: torch.dtype) -> torch.nn.Module: ...

    def backbone(self, network: torch.nn.Module) -> Backbone:
        """The network as the loss engine calls it."""
        ...

    def draw_t(self, generator: torch.Generator) -> Tensor:
        """One training time, in the path's unit."""
        ...

    def time_fraction(self, t: Tensor) -> Tensor:
        """t as a share of the noise or of the schedule in [0, 1], for metrics by noise level."""
        ...

    def loss_weight(self, t: Tensor) -> Tensor:
        """The weight of squared errors at t that the network was trained with."""
        ...

    def chain_times(self, steps: int) -> Tensor:
        """The falling levels of an on-policy chain of `steps` noisy steps."""
        ...

    def load_encoder(self, device: torch.device) -> Encoder: ...

    def empty_prompt(self, encoder: Encoder) -> dict[str, Tensor]:
        """The pipeline's unconditional prompt, first axis 1."""
        ...

    def group_cond(self, prompts: Cond, resolution: int) -> dict[str, Tensor]:
        """The prompts with what else the network is told of a batch."""
        ...

    def load_decoder(self, network: torch.nn.Module, device: torch.device) -> Decoder: ...

    def save_lora(self, network: torch.nn.Module, folder: Path) -> None:
        """Write the adapter as the stock pipeline reads it."""
        ...

    def save_index(self, folder: Path) -> None:
        """Write what makes a pipeline's folder of a trained network's, where that is small; else nothing."""
        ...


def family_class(pipeline: str, name: str) -> Kind:
    """The family of a class of pipelines; ValueError, which begins with the name, where none is known."""
    if pipeline not in FAMILIES:
        raise ValueError(f"{name} is a {pipeline}; supported pipelines are {', '.join(FAMILIES)}.")
    module, _, attribute = FAMILIES[pipeline].partition(":")
    return getattr(importlib.import_module(module), attribute)


def open_backbone(checkpoint: Checkpoint, times: Times, *, resolution: int) -> Family:
    """The backbone of a pipeline folder or hub name, with times and path read; the weights come later.

    Args:
        resolution: of the run's pictures, in pixels.

    Raises:
        ValueError: nothing there, no supported pipeline, times or a resolution that are not for it, or weights to start
            from that are missing; names which and what to do.
    """
    checkpoint = dataclasses.replace(
        checkpoint, source=pipeline_folder(checkpoint.source, checkpoint.single_file_config)
    )
    kind = family_class(pipeline_class(checkpoint), checkpoint.source)
    if resolution < kind.side or resolution % kind.side:
        raise ValueError(f"resolution must be a multiple of {kind.side}, got {resolution}.")
    checkpoint.weights_of(kind.component)
    family = kind.open(checkpoint, times, resolution)
    # Read now, so that a scheduler of another path is refused before anything long.
    assert family.path is not None
    return family


def with_weights(family: Family, folder: Path | None) -> Family:
    """The family whose network starts from a run's output folder; None for the checkpoint's own weights.

    A run's whole network has its base adapters in it already.

    Raises:
        ValueError: the folder has no weights of this network.
    """
    adapters = family.checkpoint.base_adapters if folder == family.checkpoint.network_weights else ()
    checkpoint = dataclasses.replace(family.checkpoint, network_weights=folder, base_adapters=adapters)
    checkpoint.weights_of(family.component)
    assert dataclasses.is_dataclass(family) and not isinstance(family, type), "a family is a frozen dataclass"
    return dataclasses.replace(family, checkpoint=checkpoint)
