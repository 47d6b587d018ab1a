"""What a judge is asked, and what its replies make of the images: points for each, or duels of two.

Axes: n images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.rewards.judge_asking import Asker
from diffpref.rewards.judge_parsing import lead_of_first, points_in, winner_in

Urls = Callable[[int], str]
"""The image at a place, as a data URL."""
ANY = (float("-inf"), float("inf"))


@runtime_checkable
class Template(Protocol):
    """One question, the form of its reply, and how replies become scores."""

    mode: ClassVar[str]
    """The setting's word for it."""

    @property
    def text(self) -> str:
        """What is asked, with {prompt} where the prompt goes."""
        ...

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The names that the reply gives numbers to."""
        ...

    @property
    def dimension(self) -> str:
        """The only one that counts; "" for their mean."""
        ...

    def unit(self) -> str:
        """What a score is, for the provenance."""
        ...

    def scores(self, asker: Asker, url: Urls, prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """A score for each prompt's image; NaN where the judge gave no answer that can be read."""
        ...

    def compare(self, asker: Asker, first: Urls, second: Urls, prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """1 where the first image is better, 0 where the second is, 0.5 where neither is, NaN where it is not said."""
        ...

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """log P(a is preferred) / P(b is preferred) of two images' scores, in nats."""
        ...


@dataclass(frozen=True)
class PointsTemplate:
    """Points for one image, in each of the dimensions."""

    mode: ClassVar[str] = "points"

    text: str
    dimensions: tuple[str, ...]
    bounds: tuple[float, float] = ANY
    """The lowest and the highest number that is a reply."""
    dimension: str = ""

    def __post_init__(self) -> None:
        if not self.dimensions:
            raise ValueError("a template of points needs dimensions: [NAME, ...], to which its replies give numbers.")
        _check_dimension(self.dimension, self.dimensions)

    def unit(self) -> str:
        return f"points: {self.dimension or 'mean of ' + ', '.join(self.dimensions)}"

    def points(self, reply: str) -> Mapping[str, float] | None:
        """The number of every dimension, or None where one is missing, given twice or out of bounds."""
        return points_in(reply, self.dimensions, self.bounds)

    def scores(self, asker: Asker, url: Urls, prompts: Sequence[str]) -> Float[Tensor, " n"]:
        def score(place: int) -> float:
            points = asker.ask([url(place)], question(self.text, prompts[place]), read=self.points)
            if points is None:
                return float("nan")
            counted = [points[self.dimension]] if self.dimension else list(points.values())
            return sum(counted) / len(counted)

        return torch.tensor(asker.in_order(score, range(len(prompts))))

    def compare(self, asker: Asker, first: Urls, second: Urls, prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """Raises ValueError: it is asked of one image at a time."""
        raise ValueError("compare needs a judge of pairs: name a template of pairs, or compare the scores.")

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The difference of points, read as nats though no one has fitted their scale."""
        return a - b


@dataclass(frozen=True)
class PairsTemplate:
    """The better of two images, by the numbers of the dimensions or, without them, by the winner that is named."""

    mode: ClassVar[str] = "pairs"

    text: str
    dimensions: tuple[str, ...] = ()
    bounds: tuple[float, float] = ANY
    """The lowest and the highest number that is a reply."""
    dimension: str = ""

    def __post_init__(self) -> None:
        _check_dimension(self.dimension, self.dimensions)

    def unit(self) -> str:
        return "share of duels won, in [0, 1]"

    def first_is_better(self, reply: str) -> float | None:
        """1 where the first image is better, 0 where the second is, 0.5 where neither is, None where it is not said."""
        if not self.dimensions:
            return winner_in(reply)
        counted = (self.dimension,) if self.dimension else self.dimensions
        lead = lead_of_first(reply, counted, self.bounds)
        if lead is None:
            return None
        return 0.5 if abs(lead) < 1e-9 else float(lead > 0)

    def scores(self, asker: Asker, url: Urls, prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """The share of its duels that an image wins against the others of its prompt; NaN where one cannot be read.

        Raises:
            ValueError: a prompt with one image only.
        """
        groups: dict[str, list[int]] = {}
        for place, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(place)
        for prompt, members in groups.items():
            if len(members) < 2:
                raise ValueError(
                    f"a judge of pairs needs two images of a prompt or more in one call, got one of {prompt!r:.80}."
                )
        duels = [pair for members in groups.values() for pair in combinations(members, 2)]
        wins = asker.in_order(lambda pair: self._duel(asker, url(pair[0]), url(pair[1]), prompts[pair[0]]), duels)
        total = torch.zeros(len(prompts), dtype=torch.float64)
        for (first, second), won in zip(duels, wins, strict=True):
            total[first] += won
            total[second] += 1 - won
        return (total / torch.tensor([len(groups[prompt]) - 1.0 for prompt in prompts])).float()

    def compare(self, asker: Asker, first: Urls, second: Urls, prompts: Sequence[str]) -> Float[Tensor, " n"]:
        places = range(len(prompts))
        return torch.tensor(asker.in_order(lambda i: self._duel(asker, first(i), second(i), prompts[i]), places))

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Raises ValueError: shares would be infinitely far apart where one image wins every duel."""
        raise ValueError("shares of duels have no pair_logit: use them as scores, or compare two images.")

    def _duel(self, asker: Asker, first: str, second: str, prompt: str) -> float:
        """Whether the first wins in both orders: 1, 0.5 or 0, or NaN."""
        asked = question(self.text, prompt)
        forth = asker.ask([first, second], asked, read=self.first_is_better)
        back = asker.ask([second, first], asked, read=self.first_is_better)
        if forth is None or back is None:
            return float("nan")
        if forth == 1 - back:
            return forth
        asker.count("order_disagreements")
        return 0.5


MODES: Mapping[str, type[PointsTemplate] | type[PairsTemplate]] = {"points": PointsTemplate, "pairs": PairsTemplate}
"""The kinds of a template by the setting's word."""


def question(text: str, prompt: str) -> str:
    """The text about one prompt."""
    return text.replace("{prompt}", prompt)


def _check_dimension(dimension: str, dimensions: Sequence[str]) -> None:
    if dimension and dimension not in dimensions:
        raise ValueError(f"dimension must be one of {list(dimensions)}, got {dimension!r}.")
