"""Losses of a reward's training. A member is one file and one line in `LOSSES`."""

from collections.abc import Mapping

from diffpref.rewards.training.losses.entropy import cross_entropy, entropy
from diffpref.rewards.training.losses.hps import HPSLoss
from diffpref.rewards.training.losses.loss import Loss
from diffpref.rewards.training.losses.pickscore import PickScoreLoss

LOSSES: Mapping[str, type] = {"pickscore": PickScoreLoss, "hps": HPSLoss}
"""The choices of `loss:` by name."""

__all__ = ["LOSSES", "HPSLoss", "Loss", "PickScoreLoss", "cross_entropy", "entropy"]
