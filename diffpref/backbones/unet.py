"""What SD 1.5, 2.x and XL share: a UNet on the variance-preserving path, whose times are the indices of a table."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from diffpref.backbones.adapters.lora import save_unet_lora
from diffpref.backbones.checkpoint import Checkpoint
from diffpref.backbones.loading import load_network, read_config
from diffpref.backbones.times import Times, one_of, span
from diffpref.path import GaussianPath, variance_preserving
from diffpref.transition import Ancestral, StepRule

STEPS = 1000
Own = TypeVar("Own", bound="UNetFamily")


@dataclass(frozen=True)
class IndexTimes:
    """Uniform over indices of the table, all of them by default, as in the official Diffusion-DPO code."""

    low: int = 0
    high: int = STEPS - 1
    """The last index that is drawn."""
    only: tuple[int, ...] = ()
    """The indices that are drawn, where they are no range."""

    def draw(self, generator: torch.Generator) -> Tensor:
        """One index."""
        if self.only:
            return one_of(self.only, generator)
        return torch.randint(self.low, self.high + 1, (), generator=generator)


def index_times(times: Times) -> IndexTimes:
    """The user's range or list of indices; ValueError for a t that is no index of the table."""
    low, high = span(times, 0, STEPS - 1)
    for t in (low, high, *times.timesteps):
        if t != int(t):
            raise ValueError(f"t_min, t_max and timesteps must be whole numbers on a path of indices, got {t:g}.")
    return IndexTimes(int(low), int(high), tuple(int(t) for t in times.timesteps))


@dataclass(frozen=True)
class UNetFamily(ABC):
    """All but the conditioning, which tells the pipelines apart."""

    checkpoint: Checkpoint
    times: IndexTimes = IndexTimes()
    zero_terminal_snr: bool = False

    component: ClassVar[str] = "unet"
    networks: ClassVar[tuple[str, ...]] = ("UNet2DConditionModel",)
    lora_targets: ClassVar[tuple[str, ...]] = ("to_k", "to_q", "to_v", "to_out.0")
    side: ClassVar[int] = 8
    step: ClassVar[StepRule] = Ancestral()
    pipeline: ClassVar[str] = "diffusers:DiffusionPipeline"
    call: ClassVar[str] = "pipe({prompt})"

    @classmethod
    def open(cls: type[Own], checkpoint: Checkpoint, times: Times, resolution: int) -> Own:
        """The family of the checkpoint; raises ValueError for times of other paths."""
        if times.timestep_density not in ("auto", "uniform"):
            raise ValueError(f"timestep_density {times.timestep_density} is not for a path of indices: use uniform.")
        if times.timestep_shift is not None:
            raise ValueError(f"timestep_shift {times.timestep_shift} is for flow models: {checkpoint.source} is none.")
        return cls(checkpoint, index_times(times), times.zero_terminal_snr)

    @cached_property
    def path(self) -> GaussianPath:
        """The path that the pipeline's scheduler was trained on: epsilon, v or sample prediction.

        Raises:
            ValueError: a scheduler without a table of betas (EDM, flow), of another length, or of another prediction.
        """
        return table_path(self.checkpoint, zero_terminal_snr=self.zero_terminal_snr)

    def load_network(self, dtype: torch.dtype) -> UNet2DConditionModel:
        """The UNet of the pipeline, or the weights that replace it."""
        return load_network(UNet2DConditionModel, self.checkpoint, self.component, dtype)

    def draw_t(self, generator: torch.Generator) -> Tensor:
        """One time index."""
        return self.times.draw(generator)

    def time_fraction(self, t: Tensor) -> Tensor:
        """t as a fraction of the schedule in [0, 1), for metrics by noise level."""
        return t / STEPS

    def loss_weight(self, t: Tensor) -> Tensor:
        """1: these networks are trained on plain squared errors."""
        return torch.ones(t.shape, device=t.device)

    def chain_times(self, steps: int) -> Tensor:
        """The levels of an on-policy chain of `steps` noisy steps, evenly spaced from the last index down.

        The remaining step to the clean picture has almost no noise and is left to the denoiser."""
        return torch.linspace(STEPS - 1, 0, steps + 2).round().long()[:-1]

    @abstractmethod
    def version(self, network: torch.nn.Module) -> str:
        """kohya's name of the version of Stable Diffusion that the network is of, by which A1111 sorts LoRA files."""

    def leading_times(self, steps: int) -> Tensor:
        """The levels of DDIM's `leading` grid, on which D3PO's code samples: 951, 901, ..., 1, 0 for 20 steps.

        Source: D3PO's ddim_with_logprob.py, where the step after the last multiple of 1000 / steps ends at index 0.

        Raises:
            ValueError: so many steps that no level lies between them, or one.
        """
        if not 2 <= steps <= STEPS // 2:
            raise ValueError(f"chain_steps must be in [2, {STEPS // 2}] with ddim_grid, got {steps}.")
        # The one setting of the grid that checkpoints differ in; DDIM's own value is 0.
        offset = int(read_config(DDIMScheduler, self.checkpoint, "scheduler").get("steps_offset", 0))
        grid = torch.arange(steps - 1, -1, -1) * (STEPS // steps) + offset
        return grid if offset == 0 else torch.cat([grid, grid.new_zeros(1)])

    def save_index(self, folder: Path) -> None:
        """Nothing: the pipeline's other networks are large, and stay in the base model."""
        return

    def save_lora(self, network: torch.nn.Module, folder: Path) -> None:
        """Write pytorch_lora_weights.safetensors as the `load_lora_weights` of both UNet pipelines, ComfyUI and A1111
        read it."""
        save_unet_lora(network, self.version(network), folder)

    @classmethod
    def prompt_tokens(cls, lengths: Sequence[int], longest: int) -> int | None:
        """None: CLIP's length is its own."""
        return None


def without_signal(table: Tensor) -> Tensor:
    """The table of alphas_cumprod, stretched so that its last level holds no picture and its first stays as it is.

    Source: Lin et al. 2024, algorithm 1: sqrt(alphas_cumprod) is shifted and scaled."""
    roots = table.sqrt()
    return ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))).square()


def table_path(checkpoint: Checkpoint, *, zero_terminal_snr: bool = False) -> GaussianPath:
    """The path of the betas in the pipeline's scheduler; raises ValueError as `UNetFamily.path` says.

    Args:
        zero_terminal_snr: stretch the table; on epsilon too, whose last level then trains on noise alone.
    """
    config = read_config(DDPMScheduler, checkpoint, "scheduler")
    # DDPMScheduler fills in its own table for a scheduler that has none, and says nothing.
    if "beta_schedule" not in config:
        raise ValueError(
            f"{checkpoint.source}: its scheduler {config.get('_class_name')} has no beta_schedule. EDM and flow "
            "variants of this pipeline, like playground-v2.5, are not supported; DDPM, DDIM, PNDM, Euler and DPM are."
        )
    try:
        scheduler = DDPMScheduler.from_config(config)
        assert isinstance(scheduler, DDPMScheduler)
        table, prediction = scheduler.alphas_cumprod, scheduler.config["prediction_type"]
        if len(table) != STEPS:
            raise ValueError(f"the scheduler has {len(table)} levels, not {STEPS}.")
        if prediction == "epsilon" and not table.all():
            raise ValueError(
                "at a terminal SNR of zero epsilon says nothing of the picture: v_prediction belongs to it."
            )
        if zero_terminal_snr:
            table = without_signal(table)
        return variance_preserving(table, prediction)
    except (ValueError, NotImplementedError) as problem:
        raise ValueError(f"{checkpoint.source}: {problem}") from None


def meta_path() -> GaussianPath:
    """A path of this kind for counting, which needs its type alone."""
    return variance_preserving(torch.linspace(0.9991, 0.0047, STEPS, dtype=torch.float64))
