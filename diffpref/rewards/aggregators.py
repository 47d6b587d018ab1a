"""Aggregators: how the scores of several rewards become one number, phi, for each image of a prompt.

Axes: r rewards, k images of one prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.rewards import aggregate


@dataclass(frozen=True, kw_only=True)
class Voters:
    """The rewards that have a say, in the order of the scores' rows."""

    names: Sequence[str]
    weights: Float[Tensor, " r"]
    """How much each one counts, 0 or above."""
    mean: Float[Tensor, " r"]
    """Of each one's scores over the whole data set."""
    std: Float[Tensor, " r"]
    """Likewise; above 0."""


@runtime_checkable
class Aggregator(Protocol):
    """A frozen dataclass of what this way of adding up needs."""

    def check(self, rewards: Sequence[str]) -> None:
        """Raise ValueError where its fields do not fit the rewards of these names."""
        ...

    def phi(self, scores: Float[Tensor, "r k"], voters: Voters) -> Float[Tensor, " k"]:
        """One number per image, higher where better."""
        ...


@dataclass(frozen=True)
class WinCount:
    """The share of comparisons that an image wins, in [0, 1]: Syn-Pic's phi."""

    def check(self, rewards: Sequence[str]) -> None:
        """Any rewards will do."""

    def phi(self, scores: Float[Tensor, "r k"], voters: Voters) -> Float[Tensor, " k"]:
        return aggregate.win_count(scores, weights=voters.weights)


@dataclass(frozen=True)
class WinProb:
    """The mean probability that an image beats another one of its prompt, in [0, 1]: CaPO's calibrated reward."""

    temperatures: tuple[float, ...] = ()
    """The difference of each reward's scores at which the odds are e to 1, above 0, in the rewards' order."""

    def check(self, rewards: Sequence[str]) -> None:
        if len(self.temperatures) != len(rewards) or not all(value > 0 for value in self.temperatures):
            raise ValueError(
                f"temperatures must be {len(rewards)} numbers above 0 for win_prob of {len(rewards)} rewards, "
                f"got {list(self.temperatures)}."
            )

    def phi(self, scores: Float[Tensor, "r k"], voters: Voters) -> Float[Tensor, " k"]:
        temperatures = torch.tensor(self.temperatures, dtype=torch.float64)
        return aggregate.win_prob(scores, temperatures=temperatures, weights=voters.weights)


@dataclass(frozen=True)
class MeanZ:
    """The mean standardised score, in standard deviations; unbounded, around 0."""

    def check(self, rewards: Sequence[str]) -> None:
        """Any rewards will do."""

    def phi(self, scores: Float[Tensor, "r k"], voters: Voters) -> Float[Tensor, " k"]:
        return aggregate.mean_z(scores, mean=voters.mean, std=voters.std, weights=voters.weights)


@dataclass(frozen=True)
class Pareto:
    """1 on the first front of images that none beats in every reward, less on each that follows, in [0, 1]."""

    def check(self, rewards: Sequence[str]) -> None:
        """Any rewards will do."""

    def phi(self, scores: Float[Tensor, "r k"], voters: Voters) -> Float[Tensor, " k"]:
        return aggregate.pareto(scores, weights=voters.weights)


AGGREGATORS: Mapping[str, type] = {"win_count": WinCount, "win_prob": WinProb, "mean_z": MeanZ, "pareto": Pareto}
"""The name in the settings -> the class."""
