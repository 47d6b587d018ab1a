"""EDM in pixel space: a preconditioned UNet on the path x0 + sigma eps, unconditional or with classes as prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, log
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import extract_model_from_parallel
from diffusers import EDMEulerScheduler, UNet2DModel
from jaxtyping import Float
from torch import Tensor

from diffpref.backbones import Encoder
from diffpref.backbones.checkpoint import Checkpoint
from diffpref.backbones.edm_pictures import EDMDecoder, EDMEncoder
from diffpref.backbones.loading import load_network, read_config
from diffpref.backbones.shape import Shape
from diffpref.backbones.times import Times, check_no_table, limits, logarithm, normal_between, one_of, span
from diffpref.path import GaussianPath, edm
from diffpref.pipelines.edm import EDMPipeline, NoiseSchedule, denoise, noise_schedule
from diffpref.transition import Ancestral, StepRule
from diffpref.types import Cond


@dataclass(frozen=True, kw_only=True)
class EDMPath(GaussianPath):
    """The EDM path together with the noise that its network was trained for."""

    schedule: NoiseSchedule = field(kw_only=True)


def edm_path(schedule: NoiseSchedule) -> EDMPath:
    """The path with the schedule's sigma_data."""
    return EDMPath(**vars(edm(schedule.sigma_data)), schedule=schedule)


@dataclass(frozen=True)
class EDMNetwork:
    """The denoiser D(x; sigma) as a Backbone; t is sigma, and cond holds labels "n", which any float may carry."""

    network: torch.nn.Module
    path: EDMPath

    @cached_property
    def conditional(self) -> bool:
        """Whether the network has classes."""
        # accelerate's wrapper for several processes has no config.
        return extract_model_from_parallel(self.network).config["num_class_embeds"] is not None

    def __call__(self, x_t: Float[Tensor, " n *chw"], t: Tensor, cond: Cond) -> Float[Tensor, " n *chw"]:
        labels = cond["labels"].round().long() if self.conditional else None
        return denoise(self.network, x_t, t, labels, self.path.schedule.sigma_data)


@dataclass(frozen=True)
class LogNormalTimes:
    """ln sigma ~ N(mean, std^2)."""

    mean: float
    std: float
    low: float = 0.0
    high: float = inf
    only: tuple[float, ...] = ()
    """The sigmas that are drawn, where they have no density."""

    def draw(self, generator: torch.Generator) -> Tensor:
        """One sigma."""
        if self.only:
            return one_of(self.only, generator)
        if (self.low, self.high) != (0.0, inf):
            low, high = ((logarithm(sigma) - self.mean) / self.std for sigma in (self.low, self.high))
            return (self.mean + self.std * normal_between(low, high, generator)).exp().clamp(self.low, self.high)
        return (self.mean + self.std * torch.randn((), generator=generator)).exp()


@dataclass(frozen=True)
class EDM:
    """A pipeline of `diffpref.pipelines.edm`."""

    checkpoint: Checkpoint
    times: LogNormalTimes = LogNormalTimes(-1.2, 1.2)

    component: ClassVar[str] = "unet"
    networks: ClassVar[tuple[str, ...]] = ("UNet2DModel",)
    lora_targets: ClassVar[tuple[str, ...]] = ()
    side: ClassVar[int] = 1
    step: ClassVar[StepRule] = Ancestral()
    pipeline: ClassVar[str] = "diffpref.pipelines.edm:EDMPipeline"
    call: ClassVar[str] = "pipe()"

    @classmethod
    def open(cls, checkpoint: Checkpoint, times: Times, resolution: int) -> "EDM":
        """The family with a mean that moves with the data's scale: -1.2 at sigma_data 0.5.

        Source: Karras et al. 2022, table 1.

        Raises:
            ValueError: a density that belongs to other paths, or p_std below 0.
        """
        if times.timestep_density not in ("auto", "log_normal"):
            raise ValueError(
                f"timestep_density {times.timestep_density} is not for EDM's noise levels: use log_normal."
            )
        if times.p_std < 0:
            raise ValueError(f"p_std must be 0 or above, got {times.p_std}.")
        check_no_table(times, cls.__name__)
        low, high = span(times, 0.0, inf)
        if times.p_std == 0 and limits(times):
            raise ValueError(f"p_std 0 draws one sigma alone: leave {' and '.join(limits(times))} out.")
        if 0 in times.timesteps:
            raise ValueError("timesteps are sigmas above 0, got 0.")
        mean = times.p_mean if times.p_mean is not None else -1.2 + log(_schedule(checkpoint).sigma_data / 0.5)
        return cls(checkpoint, LogNormalTimes(mean, times.p_std, low, high, times.timesteps))

    @cached_property
    def path(self) -> EDMPath:
        """The path with sigma_data and the levels of the pipeline's scheduler."""
        return edm_path(_schedule(self.checkpoint))

    def load_network(self, dtype: torch.dtype) -> UNet2DModel:
        """The UNet of the pipeline, or the weights that replace it."""
        return load_network(UNet2DModel, self.checkpoint, self.component, dtype)

    def backbone(self, network: torch.nn.Module) -> EDMNetwork:
        """The network as the loss engine calls it."""
        return EDMNetwork(network, self.path)

    def draw_t(self, generator: torch.Generator) -> Tensor:
        """One sigma."""
        return self.times.draw(generator)

    def time_fraction(self, t: Tensor) -> Tensor:
        """sigma / (1 + sigma), the noise's share in [0, 1), for metrics by noise level."""
        return t / (1 + t)

    def loss_weight(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2: the error of D as that of the network's own target.

        Karras et al. 2022, table 1; without it the noisiest levels would decide alone."""
        data = self.path.schedule.sigma_data
        return (t.square() + data**2) / (t * data).square()

    def chain_times(self, steps: int) -> Tensor:
        """The levels of an on-policy chain of `steps` noisy steps: Karras' from sigma_max down to sigma_min."""
        return torch.tensor(self.path.schedule.levels(steps + 1))

    def load_encoder(self, device: torch.device) -> EDMEncoder:
        """What turns pictures and prompts into tensors."""
        return EDMEncoder(self.checkpoint)

    def empty_prompt(self, encoder: Encoder) -> dict[str, Tensor]:
        """The label that stands for no class."""
        return encoder.encode_prompts([""])

    def group_cond(self, prompts: Cond, resolution: int) -> dict[str, Tensor]:
        """The labels alone."""
        return dict(prompts)

    def load_decoder(self, network: torch.nn.Module, device: torch.device) -> EDMDecoder:
        """The pipeline around a network."""
        unet: Any = network
        return EDMDecoder(EDMPipeline.from_pretrained(self.checkpoint.source, unet=unet, **self.checkpoint.options()))

    def save_index(self, folder: Path) -> None:
        """The pipeline's index, scheduler and code: with the UNet they are all of it."""
        with torch.device("meta"):
            unet: Any = UNet2DModel.from_config(read_config(UNet2DModel, self.checkpoint, self.component))
        EDMPipeline.from_pretrained(self.checkpoint.source, unet=unet, **self.checkpoint.options()).save_index(folder)

    def save_lora(self, network: torch.nn.Module, folder: Path) -> None:
        """Raises ValueError: stock diffusers has no reader for LoRA of this network."""
        raise ValueError("EDM is trained as a whole, without LoRA: set adapter: full.")

    @classmethod
    def meta_backbone(cls, network: torch.nn.Module) -> EDMNetwork:
        """The network on a path like that of CIFAR-10's."""
        return EDMNetwork(network, edm_path(NoiseSchedule(0.5, 0.002, 80.0, 7.0)))

    @classmethod
    def shape(cls, config: Mapping[str, Any], resolution: int, lengths: Sequence[int], tokens: int | None) -> Shape:
        """Patches of the network's one size, and a label where it has classes."""
        side = config["sample_size"]
        classes = {"labels": ()} if config.get("num_class_embeds") is not None else {}
        return Shape((config["in_channels"], side, side), classes)

    @classmethod
    def prompt_tokens(cls, lengths: Sequence[int], longest: int) -> int | None:
        """None: a class is no text."""
        return None


def _schedule(checkpoint: Checkpoint) -> NoiseSchedule:
    """The noise of the pipeline's scheduler."""
    # diffusers annotates `from_pretrained` as if it could return a tuple.
    scheduler: Any = EDMEulerScheduler.from_pretrained(
        checkpoint.source, subfolder="scheduler", revision=checkpoint.revision
    )
    return noise_schedule(scheduler.config)
