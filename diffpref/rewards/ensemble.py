"""A reward made of rewards: how does the image do among the others of its prompt, by all of them together?

Scores compare images of one prompt only, in one call. Axes: n images, r rewards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffpref.rewards.aggregators import AGGREGATORS, Aggregator, Voters, WinCount
from diffpref.rewards.checked import CheckedReward
from diffpref.settings.axis import Axis
from diffpref.settings.record import fields_of
from diffpref.settings.typed import plain

AGGREGATOR = Axis("aggregator", AGGREGATORS)


@dataclass(frozen=True)
class EnsembleSettings:
    """Which rewards, and how their scores become one."""

    rewards: tuple[Mapping[str, Any], ...]
    """Each as `reward: NAME` and its settings; NAME is anything that `find_reward` takes."""
    aggregator: Annotated[Aggregator, AGGREGATOR] = WinCount()
    """mean_z takes each reward's mean and deviation over the images of one call."""
    weights: tuple[float, ...] = ()
    """How much each reward counts, 0 or above, in the rewards' order; empty for all the same."""

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ValueError("rewards must name one reward or more, each as `reward: NAME`.")
        for i, reward in enumerate(self.rewards):
            if not isinstance(reward.get("reward"), str):
                raise ValueError(f"rewards[{i}] must have a line `reward: NAME`, got {dict(reward)!r:.80}.")
        if self.weights and (len(self.weights) != len(self.rewards) or min(self.weights) < 0 or not any(self.weights)):
            raise ValueError(
                f"weights must be one number a reward ({len(self.rewards)}), 0 or above, and one of them above 0, or "
                f"empty; got {list(self.weights)}."
            )
        self.aggregator.check(self.names)

    @property
    def names(self) -> list[str]:
        """The rewards by their places: one may stand there twice with other settings."""
        return [str(place) for place in range(len(self.rewards))]

    def load(self, device: torch.device) -> "Ensemble":
        """All rewards in memory at once.

        Raises:
            ValueError: one of them cannot be loaded.
        """
        from diffpref.rewards import find_reward

        loaded: list[CheckedReward] = []
        for i, reward in enumerate(self.rewards):
            settings = {key: value for key, value in reward.items() if key != "reward"}
            try:
                loaded.append(find_reward(reward["reward"], device, settings=settings))
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
            "aggregator": AGGREGATOR.name_of(type(settings.aggregator)),
            "weights": str(list(weights)),
            **{key: str(plain(value)) for key, value in fields_of(settings.aggregator).items()},
            **{f"{i}.{key}": value for i, reward in enumerate(rewards) for key, value in _provenance(reward).items()},
        }

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """What the aggregator makes of each image among those of the same prompt, float32; see its range there.

        Raises:
            ValueError: a prompt with a single image, which has nothing to be compared with.
        """
        groups: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(i)
        lonely = next((prompt for prompt, rows in groups.items() if len(rows) == 1), None)
        if lonely is not None:
            raise ValueError(
                f"reward 'ensemble' compares the images of a prompt, and {lonely!r:.80} has only one: score two or "
                "more of each prompt in one call, or use a single reward."
            )
        if not groups:
            return torch.zeros(0)
        table = torch.stack([reward(images, prompts) for reward in self.rewards]).double()
        return self.aggregate(table, list(groups.values())).float()

    def aggregate(self, table: Float[Tensor, "r n"], groups: Sequence[list[int]]) -> Float[Tensor, " n"]:
        """The rewards' scores as one number a image.

        Args:
            groups: the places of each prompt's images.
        """
        std = table.std(1, correction=0)
        # A reward that is the same for all these images has nothing to say about them: all its z are 0.
        std = torch.where(std > 0, std, 1.0)
        voters = Voters(names=self.settings.names, weights=self.weights, mean=table.mean(1), std=std)
        value = torch.zeros_like(table[0])
        for rows in groups:
            value[rows] = self.settings.aggregator.phi(table[:, rows], voters)
        return value

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Raises ValueError: a share of wins is no Bradley-Terry score.

        It depends on the other images of the prompt, so that the same two images would get other odds in other
        company; even win_prob's mean over opponents is the probability of the pair only where the two are alone.
        """
        raise ValueError(
            "reward 'ensemble' has no pair_logit: its scores say how a image does among the others of its prompt, "
            "which gives an order but no odds of two images. Use the order, or the pair_logit of a single reward."
        )


def _provenance(reward: CheckedReward) -> dict[str, str]:
    return {"reward": reward.name, **reward.provenance}
