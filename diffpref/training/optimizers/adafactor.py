"""Adafactor (Shazeer & Stern 2018)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge

from diffpref.training.optimizers.optimizer import Trained


@dataclass(frozen=True)
class Adafactor:
    """As the official SDXL launcher has it: a fixed rate, no relative steps, updates clipped at 1."""

    state_bytes: ClassVar[int] = 0
    """Its state is sums over rows and columns."""

    adam_weight_decay: Annotated[float, Ge(0)] = 1e-2
    """Share of the weights that a step takes away, in units of the learning rate."""

    def check(self) -> None:
        """It runs everywhere."""

    def build(self, parameters: Trained, rate: float) -> torch.optim.Optimizer:
        from transformers.optimization import Adafactor as Stock

        return Stock(
            parameters,
            lr=rate,
            weight_decay=self.adam_weight_decay,
            clip_threshold=1.0,
            scale_parameter=False,
            relative_step=False,
        )
