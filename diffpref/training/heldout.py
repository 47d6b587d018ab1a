"""Rows that the run never trains on: whether what it learns holds beyond its own images."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffpref.probes import Batch
from diffpref.training.fixed import Fixed
from diffpref.training.health import pair_table, summarize
from diffpref.training.stream import Groups
from diffpref.types import Errors

NAMES = {
    "rewards/accuracies": "heldout/accuracy",
    "rewards/margins": "heldout/margin",
    **{
        f"error/{side}/{what}": f"heldout/error/{side}/{what}"
        for side in ("chosen", "rejected")
        for what in ("policy", "reference", "ratio")
    },
}
"""Metrics of training groups, and what they are called of held-out ones."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Measures accuracy, margin and both errors on held-out groups, always at the same times and noise."""

    fixed: Fixed
    groups: Groups
    beta: float
    """Nats of a reward for each unit of the log-ratio."""

    def __call__(self) -> dict[str, float]:
        """The metrics, whose names begin with heldout/."""
        scores, fractions, reference = self._known
        errors = Errors(self.fixed.errors(self._batches(), reference=False), reference)
        found = summarize(pair_table(errors, scores, torch.zeros(len(scores)), fractions, self.beta))
        return {name: found[key] for key, name in NAMES.items()}

    @cached_property
    def _known(self) -> tuple[Tensor, Tensor, Tensor]:
        """What does not change: scores "n k", times as shares "n", and the reference's errors "n k"."""
        pairs = [(batch.candidates.scores, self.fixed.family.time_fraction(batch.t)) for batch in self._batches()]
        scores, fractions = (torch.cat(column) for column in zip(*pairs, strict=True))
        return scores, fractions, self.fixed.errors(self._batches(), reference=True)

    def _batches(self) -> Iterator[Batch]:
        return self.fixed.batches(self.groups, range(len(self.groups)), "held out")
