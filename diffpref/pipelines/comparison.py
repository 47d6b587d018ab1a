"""Which of two models draws better, by rewards: the same prompts, the same seeds, a win rate with its interval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from PIL import Image

from diffpref.evaluate.statistics import WinRate, win_rate
from diffpref.report.grid import side_by_side
from diffpref.rewards import CheckedReward, find_reward

Model: TypeAlias = Callable[..., Any] | Sequence[Image.Image]
"""A pipeline, or anything that is called like one; or images that are there already, one for each prompt."""


@dataclass(frozen=True)
class Comparison:
    """Images of the same prompts by two models, and what the rewards say."""

    prompts: list[str]
    a: list[Image.Image]
    b: list[Image.Image]
    scores: Mapping[str, tuple[list[float], list[float]]]
    """By reward: each image's score, a's and b's."""
    win_rates: Mapping[str, WinRate]
    """By reward: the share of prompts on which a scores higher, ties as halves, with its 95 % interval."""

    def __str__(self) -> str:
        return "\n".join(f"{name}: a wins {rate}" for name, rate in self.win_rates.items())

    def worst(self, reward: str) -> list[int]:
        """The places of the prompts, a's largest losses first."""
        a, b = self.scores[reward]
        return sorted(range(len(a)), key=lambda place: a[place] - b[place])

    def sheet(self, places: Sequence[int] | None = None) -> Image.Image:
        """b's images above a's, as before and after; of the prompts at these places, else of the first six."""
        places = range(min(6, len(self.prompts))) if places is None else places
        b, a = ([images[place] for place in places] for images in (self.b, self.a))
        return side_by_side(b, a, [self.prompts[place] for place in places])


def compare(
    a: Model,
    b: Model,
    prompts: Sequence[str],
    rewards: str | CheckedReward | Sequence[str | CheckedReward] = "pickscore",
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
    **options: Any,
) -> Comparison:
    """How often a's image scores higher than b's of the same prompt and seed, by each reward.

    Two states of one pipeline are compared by their images: draw those of the base first.

    >>> print(compare(tuned, base, prompts, ["pickscore", "clipscore"]))  # doctest: +SKIP

    Args:
        rewards: names, YAML files or addresses as `diffpref.find_reward` takes them, or such rewards.
        seed: prompt i is drawn from seed + i by both.
        device: where rewards are computed; by default a's.
        options: of both pipelines' calls.

    Raises:
        ValueError: no prompt, no such reward, one pipeline twice, or not one image for each prompt.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise ValueError("compare needs prompts, got none.")
    if a is b:
        raise ValueError("a and b are one pipeline: give two, or the images that it drew before it was changed.")
    given = [rewards] if isinstance(rewards, str | CheckedReward) else list(rewards)
    place = device if device is not None else getattr(a, "device", "cpu")
    # Before the long work: a wrong name costs no images.
    found = [find_reward(reward, place) if isinstance(reward, str) else reward for reward in given]
    images = [images_of(model, prompts, seed, name, options) for name, model in (("a", a), ("b", b))]
    scores = {
        reward.name: (reward(images[0], prompts).tolist(), reward(images[1], prompts).tolist()) for reward in found
    }
    rates = {name: win_rate(of_a, of_b) for name, (of_a, of_b) in scores.items()}
    return Comparison(prompts, images[0], images[1], scores, rates)


def images_of(
    model: Model, prompts: Sequence[str], seed: int, name: str, options: Mapping[str, Any]
) -> list[Image.Image]:
    """One image of each prompt, each from its own seed; images that are there already are only counted."""
    if callable(model):
        return [
            model(prompt, generator=torch.Generator("cpu").manual_seed(seed + place), **options).images[0]
            for place, prompt in enumerate(prompts)
        ]
    if len(model) != len(prompts):
        raise ValueError(f"{name} must be one image for each of the {len(prompts)} prompts, got {len(model)}.")
    return list(model)
