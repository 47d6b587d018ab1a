"""AdamW with running averages of 8 bits (Dettmers et al. 2022)."""

import importlib.util
from dataclasses import dataclass
from typing import ClassVar

import torch

from diffpref.training.optimizers.adam import Adam
from diffpref.training.optimizers.optimizer import Trained


@dataclass(frozen=True)
class AdamW8bit(Adam):
    """bitsandbytes' AdamW8bit: AdamW's settings, a quarter of its memory."""

    state_bytes: ClassVar[int] = 2

    def check(self) -> None:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError("optimizer adamw_8bit needs bitsandbytes: pip install 'diffpref[bitsandbytes]'.")

    def build(self, parameters: Trained, rate: float) -> torch.optim.Optimizer:
        import bitsandbytes  # type: ignore[import-not-found]

        return bitsandbytes.optim.AdamW8bit(parameters, **self.arguments(rate))
