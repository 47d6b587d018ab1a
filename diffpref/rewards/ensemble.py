"""A reward made of rewards: how does the picture do among the others of its prompt, by all of them together?

Scores compare pictures of one prompt only, in one call. Axes: n pictures, r rewards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffpref.rewards.aggregate import AGGREGATORS
from diffpref.rewards.checked import CheckedReward


@dataclass(frozen=True)
class EnsembleSettings:
    """Which rewards, and how their scores become one."""

    rewards: tuple[Mapping[str, Any], ...]
    """Each as `reward: NAME` and its settings; NAME is anything that `find_reward` takes."""
    aggregator: Literal["win_count", "win_prob", "mean_z", "pareto"] = "win_count"
    """See `diffpref.rewards.aggregate`. mean_z takes each reward's mean and deviation over the pictures of one call."""
    weights: tuple[float, ...] = ()
    """How much each reward counts, 0 or above, in the rewards' order; empty for all the same."""
    temperatures: tuple[float, ...] = ()
    """Only for win_prob: the difference of each reward's scores at which the odds are e to 1, above 0."""

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ValueError("rewards must name one reward or more, each as `reward: NAME`.")
        for i, reward in enumerate(self.rewards):
            if not isinstance(reward.get("reward"), str):
                raise ValueError(f"rewards[{i}] must have a line `reward: NAME`, got {dict(reward)!r:.80}.")
        if self.aggregator not in AGGREGATORS:
            raise ValueError(f"aggregator must be one of {', '.join(AGGREGATORS)}, got {self.aggregator!r}.")
        if self.weights and (len(self.weights) != len(self.rewards) or min(self.weights) < 0 or not any(self.weights)):
            raise ValueError(
                f"weights must be one number a reward ({len(self.rewards)}), 0 or above, and one of them above 0, or "
                f"empty; got {list(self.weights)}."
            )
        asked = len(self.rewards) if self.aggregator == "win_prob" else 0
        if len(self.temperatures) != asked or not all(t > 0 for t in self.temperatures):
            raise ValueError(
                f"temperatures must be {asked} numbers above 0 for {self.aggregator} of {len(self.rewards)} rewards, "
                f"got {list(self.temperatures)}."
            )

    def load(self, device: torch.device) -> "Ensemble":
        """All rewards in memory at once.

        Raises:
            ValueError: one of them cannot be loaded.
        """
        from diffpref.rewards import find_reward

        loaded: list[CheckedReward] = []
        for i, given in enumerate(self.rewards):
            settings = {key: value for key, value in given.items() if key != "reward"}
            try:
                loaded.append(find_reward(given["reward"], device, settings=settings))
            except ValueError as problem:
                raise ValueError(f"rewards[{i}]: {problem}") from None
        return Ensemble(self, loaded)


class Ensemble:
    """Rewards in memory, asked together."""

    def __init__(self, settings: EnsembleSettings, rewards: Sequence[CheckedReward]) -> None:
        self.settings, self.rewards = settings, rewards
        weights = settings.weights or (1.0,) * len(rewards)
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.provenance = {
            "scorer": "ensemble",
            "aggregator": settings.aggregator,
            "weights": str(list(weights)),
            "temperatures": str(list(settings.temperatures)),
            **{f"{i}.{key}": value for i, reward in enumerate(rewards) for key, value in _told(reward).items()},
        }

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """What the aggregator makes of each picture among those of the same prompt, float32; see its range there.

        Raises:
            ValueError: a prompt with a single picture, which has nothing to be compared with.
        """
        groups: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(i)
        lonely = next((prompt for prompt, rows in groups.items() if len(rows) == 1), None)
        if lonely is not None:
            raise ValueError(
                f"reward 'ensemble' compares the pictures of a prompt, and {lonely!r:.80} has only one: score two or "
                "more of each prompt in one call, or use a single reward."
            )
        if not groups:
            return torch.zeros(0)
        table = torch.stack([reward(images, prompts) for reward in self.rewards]).double()
        return self.aggregate(table, list(groups.values())).float()

    def aggregate(self, table: Float[Tensor, "r n"], groups: Sequence[list[int]]) -> Float[Tensor, " n"]:
        """The rewards' scores as one number a picture.

        Args:
            groups: the places of each prompt's pictures.
        """
        extra: dict[str, Tensor] = {}
        if self.settings.aggregator == "win_prob":
            extra["temperatures"] = torch.tensor(self.settings.temperatures, dtype=torch.float64)
        if self.settings.aggregator == "mean_z":
            std = table.std(1, correction=0)
            # A reward that is the same for all these pictures has nothing to say about them: all its z are 0.
            extra |= {"mean": table.mean(1), "std": torch.where(std > 0, std, 1.0)}
        value = torch.zeros_like(table[0])
        for rows in groups:
            value[rows] = AGGREGATORS[self.settings.aggregator](table[:, rows], weights=self.weights, **extra)
        return value

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Raises ValueError: a share of wins is no Bradley-Terry score.

        It depends on the other pictures of the prompt, so that the same two pictures would get other odds in other
        company; even win_prob's mean over opponents is the probability of the pair only where the two are alone.
        """
        raise ValueError(
            "reward 'ensemble' has no pair_logit: its scores say how a picture does among the others of its prompt, "
            "which gives an order but no odds of two pictures. Use the order, or the pair_logit of a single reward."
        )


def _told(reward: CheckedReward) -> dict[str, str]:
    return {"reward": reward.name, **reward.provenance}
