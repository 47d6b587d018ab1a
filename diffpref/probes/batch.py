"""What a source hands to a probe: groups of candidates with the randomness that was drawn for them."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from diffpref.transfer import moved
from diffpref.types import Candidates, Cond


@dataclass(frozen=True)
class Batch:
    """Groups of images with the randomness of their probe: t in the path's unit, and noise for every candidate."""

    candidates: Candidates
    t: Tensor
    eps: Tensor
    names: tuple[str, ...] = ()
    """Equal names are equal groups at equal t, for what may be kept of them."""

    @property
    def shared(self) -> tuple[str, ...]:
        """A name for each candidate where several groups may hold the same one; empty: no two are the same."""
        return ()

    def inputs(self, group: int) -> list[Tensor]:
        """All that the reference's error of a group depends on, beside its conditioning."""
        return [self.candidates.x0[group], self.eps[group], self.t[group]]

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        shared = self.eps.shape[1] > 1 and self.eps.stride(1) == 0  # one noise for all candidates travels once
        eps = moved(self.eps[:, :1] if shared else self.eps, device).expand_as(self.eps)
        return Batch(_moved(self.candidates, device), moved(self.t, device), eps, self.names)


@dataclass(frozen=True)
class StepBatch:
    """Stored sampler steps: candidates.x0 is the latent at t, x_s the one that was drawn at s below it."""

    candidates: Candidates
    t: Tensor
    x_s: Tensor
    s: Tensor
    names: tuple[str, ...] = ()
    """Of each candidate; equal names are one chain at one step."""

    @property
    def shared(self) -> tuple[str, ...]:
        """A name for each candidate: the groups of a prompt share their chains."""
        return self.names

    def inputs(self, group: int) -> list[Tensor]:
        """All that the reference's error of a group depends on, beside its conditioning."""
        return [self.candidates.x0[group], self.x_s[group], self.t[group], self.s[group]]

    def to(self, device: torch.device) -> "StepBatch":
        """The batch on a device."""
        x_s, t, s = (moved(tensor, device) for tensor in (self.x_s, self.t, self.s))
        return StepBatch(_moved(self.candidates, device), t, x_s, s, self.names)


AnyBatch: TypeAlias = Batch | StepBatch


def _moved(c: Candidates, device: torch.device) -> Candidates:
    cond: Cond = {name: moved(value, device) for name, value in c.cond.items()}
    return Candidates(moved(c.x0, device), moved(c.scores, device), cond)
