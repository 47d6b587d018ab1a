"""A reward whose every answer is checked: as many numbers as images, each of them finite."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

Reward: TypeAlias = Callable[[list[Image.Image], list[str]], Tensor]
"""(images, one prompt per image) -> scores "n" in float32 on the CPU; higher is better."""


class WrongAnswer(ValueError):
    """A reward did not return one number per image: it would not for any images."""


@runtime_checkable
class Scorer(Protocol):
    """A reward model in memory."""

    provenance: Mapping[str, str]
    """What the scores depend on: checkpoint and its hash, preprocessing, dtype, unit, library versions."""

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Scores "n" in the model's published unit, float32 on the CPU; higher is better."""
        ...

    def pair_logit(self, a: Tensor, b: Tensor) -> Tensor:
        """log P(a is preferred) / P(b is preferred) of scores of the same prompts, in nats."""
        ...


@dataclass(frozen=True)
class CheckedReward:
    """A reward by name; `function` may return a tensor, an array or any sequence of numbers."""

    name: str
    function: Callable[[list[Image.Image], list[str]], object]
    logit: Callable[[Tensor, Tensor], Tensor] = torch.sub
    """Of two scores; a user's function is read as a Bradley-Terry reward, so that it is their difference."""
    provenance: Mapping[str, str] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """One score per image, in float32 on the CPU.

        Raises:
            ValueError: not one prompt per image, or not one finite number per image in the answer.
        """
        scores = self.measure(images, prompts)
        bad = [i for i, score in enumerate(scores.tolist()) if not math.isfinite(score)]
        if bad:
            raise ValueError(
                f"reward {self.name!r} returned {scores[bad[0]].item()} for image {bad[0]} "
                f"({prompts[bad[0]]!r:.80}): every score must be a finite number in float32's range."
            )
        return scores

    score = __call__

    @torch.no_grad()
    def measure(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """The same, but a score that is not finite is returned as it is, for a caller that counts such scores."""
        if len(images) != len(prompts):
            raise ValueError(f"a reward needs one prompt per image, got {len(prompts)} for {len(images)} images.")
        scores = torch.tensor(self._numbers(self.function(list(images), list(prompts))), dtype=torch.float32)
        if len(scores) != len(images):
            raise WrongAnswer(
                f"reward {self.name!r} returned {len(scores)} scores for {len(images)} images: "
                "it must return one number per image, in the images' order."
            )
        return scores

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """log P(a is preferred) / P(b is preferred) of this reward's scores of the same prompts, in nats."""
        return self.logit(a, b)

    def _numbers(self, answer: object) -> list[float]:
        if isinstance(answer, (Tensor, np.ndarray)):
            answer = answer.tolist()  # one copy from the device, not one a number
        if isinstance(answer, (str, bytes, Mapping)) or not isinstance(answer, Iterable):
            raise WrongAnswer(
                f"reward {self.name!r} returned {type(answer).__name__} {answer!r:.80}: "
                "it must return a sequence of numbers, one per image."
            )
        return [self._number(value, i) for i, value in enumerate(answer)]

    def _number(self, value: Any, i: int) -> float:
        try:
            if not isinstance(value, (str, bytes)):
                return float(value)
        except (TypeError, ValueError, RuntimeError):
            pass
        raise WrongAnswer(
            f"reward {self.name!r} returned {type(value).__name__} {value!r:.80} for image {i}: "
            "every score must be one number."
        )
