"""What a user may say of the times of training, whatever the backbone."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Times:
    """How t is drawn in training. None is the backbone's own value, from its checkpoint or its paper."""

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
