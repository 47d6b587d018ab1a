"""Aggregators of a labelling run: those of `diffpref.rewards.aggregators`, with temperatures by the rewards' names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor

from diffpref.rewards import aggregate, aggregators
from diffpref.rewards.aggregators import Voters
from diffpref.settings.axis import Axis


@dataclass(frozen=True)
class WinProb:
    """The mean probability that an image beats another one of its prompt, in [0, 1]: CaPO's calibrated reward."""

    temperatures: Mapping[str, Annotated[float, Gt(0)]] = field(default_factory=dict)
    """The score difference of each reward that is one nat; 1 where absent."""

    def check(self, rewards: Sequence[str]) -> None:
        check_names("temperatures", self.temperatures, rewards)

    def phi(self, scores: Float[Tensor, "r k"], voters: Voters) -> Float[Tensor, " k"]:
        temperatures = torch.tensor([self.temperatures.get(name, 1.0) for name in voters.names], dtype=torch.float64)
        return aggregate.win_prob(scores, temperatures=temperatures, weights=voters.weights)


AGGREGATOR = Axis("aggregator", {**aggregators.AGGREGATORS, "win_prob": WinProb})


def check_names(key: str, values: Mapping[str, float], rewards: Sequence[str]) -> None:
    """Raise ValueError where a value is given for a reward that the run does not have."""
    for name in values:
        if name not in rewards:
            raise ValueError(f"{key} names the reward {name!r}, but there are {', '.join(rewards)}.")
