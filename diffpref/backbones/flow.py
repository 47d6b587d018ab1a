"""What the families on the straight path share: their scheduler, and times with a shift."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffpref.backbones.checkpoint import Checkpoint
from diffpref.backbones.loading import read_config
from diffpref.backbones.times import Times, check_no_table, limits, logarithm, normal_between, one_of, span

STEPS = 1000
"""The network's timestep at t = 1."""
CLEANEST, NOISIEST = 1 / STEPS, 1 - 1 / STEPS
"""Training stays between them. The network never saw levels below its table's first; at t = 1 nothing of the picture is
left, so its SNR is zero and its log has no value."""


@dataclass(frozen=True)
class FlowTimes:
    """u logit-normal or uniform, then t = shift u / (1 + (shift - 1) u).

    Source: Esser et al. 2024, eq. 19 and 23."""

    density: Literal["logit_normal", "uniform"] = "logit_normal"
    mean: float = 0.0
    """Of the logit."""
    std: float = 1.0
    """Of the logit."""
    shift: float = 1.0
    low: float = 0.0
    high: float = 1.0
    only: tuple[float, ...] = ()
    """The times that are drawn, where they have no density."""

    def draw(self, generator: torch.Generator) -> Tensor:
        """One t in (0, 1)."""
        if self.only:
            return one_of(self.only, generator)
        u = self._unshifted(generator)
        return (self.shift * u / (1 + (self.shift - 1) * u)).clamp(max(CLEANEST, self.low), min(NOISIEST, self.high))

    def _unshifted(self, generator: torch.Generator) -> Tensor:
        """One u, which the shift makes a t in [low, high]."""
        if (self.low, self.high) == (0.0, 1.0):
            if self.density == "uniform":
                return torch.rand((), generator=generator)
            return torch.sigmoid(self.mean + self.std * torch.randn((), generator=generator))
        low, high = (t / (self.shift - (self.shift - 1) * t) for t in (self.low, self.high))
        if self.density == "uniform":
            return low + (high - low) * torch.rand((), generator=generator)
        least, most = ((logarithm(u) - logarithm(1 - u) - self.mean) / self.std for u in (low, high))
        return torch.sigmoid(self.mean + self.std * normal_between(least, most, generator))


def flow_times(times: Times, shift: float) -> FlowTimes:
    """The user's times with this shift; logit-normal where no density is set.

    Raises:
        ValueError: a setting of EDM's, or one out of range.
    """
    if times.timestep_density not in ("auto", "uniform", "logit_normal") or times.p_mean is not None:
        raise ValueError("timestep_density log_normal and p_mean are EDM's: use logit_normal or uniform, logit_mean.")
    if times.logit_std <= 0:
        raise ValueError(f"logit_std must be above 0, got {times.logit_std}.")
    if shift <= 0:
        raise ValueError(f"timestep_shift must be above 0, got {shift}.")
    check_no_table(times, "a flow model")
    low, high = span(times, CLEANEST, NOISIEST)
    if not {"t_min", "t_max"} & set(limits(times)):
        low, high = 0.0, 1.0
    density = "uniform" if times.timestep_density == "uniform" else "logit_normal"
    return FlowTimes(density, times.logit_mean, times.logit_std, shift, low, high, times.timesteps)


def scheduler_config(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The scheduler's settings, not a scheduler: its table is descending, already shifted, and changed by sampling.

    Args:
        name: of the family, for the message.

    Raises:
        ValueError: a scheduler of another path.
    """
    config = read_config(FlowMatchEulerDiscreteScheduler, checkpoint, "scheduler")
    kind, steps = config["_class_name"], config.get("num_train_timesteps", STEPS)
    if not kind.startswith("FlowMatch") or steps != STEPS:
        raise ValueError(
            f"{checkpoint.source}: its scheduler is a {kind} of {steps} levels; {name} needs a "
            f"FlowMatchEulerDiscreteScheduler of {STEPS}."
        )
    return config


def fixed_shift(checkpoint: Checkpoint, config: dict[str, Any]) -> float:
    """The shift of a scheduler that has one for all resolutions; ValueError where it depends on the resolution."""
    if config.get("use_dynamic_shifting", False):
        raise ValueError(
            f"{checkpoint.source}: its scheduler shifts by resolution (use_dynamic_shifting), so there is no shift "
            "to take over: set timestep_shift, for instance to 3.0 as SD3."
        )
    return float(config.get("shift", 1.0))


def even_times(steps: int) -> Tensor:
    """The levels of an on-policy chain of `steps` noisy steps, even in t from noise alone down.

    The remaining step to the clean picture is left to the denoiser."""
    return torch.linspace(1, 0, steps + 2)[:-1]
