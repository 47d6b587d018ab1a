"""What a user may say of the times of training, whatever the backbone."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Times:
    """How t is drawn in training, and at what levels. None is the backbone's own value.

    t is in the unit of the backbone's path: an index from 0 to 999 (SD 1.5, SDXL), the noise's share in (0, 1) (SD3),
    or sigma (EDM)."""

    timestep_density: Literal["auto", "uniform", "logit_normal", "log_normal"] = "auto"
    """Density of t: uniform (SDXL), logit_normal (SD3), log_normal in sigma (EDM); auto is the backbone's own."""
    logit_mean: float = 0.0
    """Mean of logit_normal; SD3 uses 0 (Esser et al. 2024)."""
    logit_std: float = 1.0
    """Standard deviation of logit_normal."""
    timestep_shift: float | None = None
    """Flow models: t becomes shift t / (1 + (shift - 1) t); by default the scheduler's shift."""
    p_mean: float | None = None
    """EDM: mean of ln sigma; by default -1.2 + ln(sigma_data / 0.5)."""
    p_std: float = 1.2
    """EDM: standard deviation of ln sigma."""
    t_min: float | None = None
    """The least t that is drawn, in the unit of the backbone's path; the density above it keeps its form."""
    t_max: float | None = None
    """The largest t that is drawn; the official Diffusion-DPO code stops at index 199 for SDXL's refiner."""
    timesteps: tuple[float, ...] = ()
    """Draw t from these alone, each as often; the official code's four of SDXL-Turbo are 249, 499, 749 and 999."""
    zero_terminal_snr: bool = False
    """SD 1.5 and SDXL: rescale the noise levels so that the last one holds no picture (Lin et al. 2024), as the
    official code does for SDXL-Turbo."""


def limits(times: Times) -> tuple[str, ...]:
    """The keys that leave levels out, of those that are set."""
    given = {"t_min": times.t_min is not None, "t_max": times.t_max is not None, "timesteps": bool(times.timesteps)}
    return tuple(key for key, is_set in given.items() if is_set)


def span(times: Times, lowest: float, highest: float) -> tuple[float, float]:
    """The least and the largest t that may be drawn.

    Args:
        lowest, highest: of the backbone; both may be drawn.

    Raises:
        ValueError: times outside the backbone's, a least one above the largest, or a span beside a list of times.
    """
    low = lowest if times.t_min is None else times.t_min
    high = highest if times.t_max is None else times.t_max
    if times.timesteps and len(limits(times)) > 1:
        raise ValueError(f"timesteps lists the times that are drawn: leave {' and '.join(limits(times)[:-1])} out.")
    for key, values in {"t_min": (low,), "t_max": (high,), "timesteps": times.timesteps}.items():
        for value in values:
            if not lowest <= value <= highest:
                raise ValueError(f"{key} must be in [{lowest:g}, {highest:g}] on this backbone, got {value:g}.")
    if low > high:
        raise ValueError(f"t_min must not be above t_max, got {low:g} and {high:g}.")
    return low, high


def check_no_table(times: Times, name: str) -> None:
    """Raise ValueError for what is for tables of noise levels alone; names the family."""
    if times.zero_terminal_snr:
        raise ValueError(f"zero_terminal_snr is for SD 1.5 and SDXL, whose levels are a table: {name} has none.")


def one_of(times: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """One of the times, each as often as the others."""
    return torch.tensor(times)[torch.randint(len(times), (), generator=generator)]


def normal_between(low: float, high: float, generator: torch.Generator) -> Tensor:
    """One standard normal number, given that it lies in [low, high]; by the inverse of its distribution."""
    if low > 0:
        # The distribution is 1 to the last digit far above the mean, but small numbers are exact far below it.
        return -normal_between(-high, -low, generator)
    ends = torch.tensor([low, high], dtype=torch.float64)
    below, above = torch.special.ndtr(ends)
    share = below + (above - below) * torch.rand((), generator=generator, dtype=torch.float64)
    return torch.special.ndtri(share).clamp(*ends).float()


def logarithm(x: float) -> float:
    """ln x, also at 0 and infinity."""
    return math.log(x) if x > 0 else -math.inf
