"""AdamW (Loshchilov & Hutter 2019)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from diffpref.training.optimizers.adam import Adam
from diffpref.training.optimizers.optimizer import Trained


@dataclass(frozen=True)
class AdamW(Adam):
    """torch's AdamW; its running averages are float32."""

    state_bytes: ClassVar[int] = 8

    def check(self) -> None:
        """It runs everywhere."""

    def build(self, parameters: Trained, rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, **self.arguments(rate))  # type: ignore[arg-type]
