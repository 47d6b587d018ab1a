"""Optimizers, by the names that the diffusers scripts use. A member is one file and one line in `OPTIMIZERS`."""

from collections.abc import Mapping

from diffpref.training.optimizers.adafactor import Adafactor
from diffpref.training.optimizers.adamw import AdamW
from diffpref.training.optimizers.adamw_8bit import AdamW8bit
from diffpref.training.optimizers.optimizer import Optimizer, Trained

OPTIMIZERS: Mapping[str, type] = {"adamw": AdamW, "adamw_8bit": AdamW8bit, "adafactor": Adafactor}
"""The choices of `optimizer:` by name."""

__all__ = ["OPTIMIZERS", "Adafactor", "AdamW", "AdamW8bit", "Optimizer", "Trained"]
