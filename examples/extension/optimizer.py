"""An optimizer of your own: plain gradient descent with momentum.

python -m diffpref.train --config configs/tiny-sdxl/dpo.yaml --optimizer examples/extension/optimizer.py:SGD \
    --learning_rate 1.0
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Lt

from diffpref.training.optimizers import Trained


@dataclass(frozen=True)
class SGD:
    """torch's SGD with Nesterov's momentum; its state is half of AdamW's."""

    state_bytes: ClassVar[int] = 4
    """One float32 running average for each trained weight."""

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Share of the running average that each step keeps, in [0, 1)."""

    def check(self) -> None:
        """It runs everywhere."""

    def build(self, parameters: Trained, rate: float) -> torch.optim.Optimizer:
        """The torch optimizer over the parameters."""
        return torch.optim.SGD(parameters, lr=rate, momentum=self.momentum, nesterov=self.momentum > 0)  # type: ignore[arg-type]
