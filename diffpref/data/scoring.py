"""Rewards become the scores that an objective reads; rows that teach it nothing are left out, before any long work."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from diffpref.data.forms import form_of
from diffpref.data.rows import Preferences, Row
from diffpref.types import Objective

_LARGEST = (2 - 2**-23) * 2.0**127
"""The largest finite number of float32, in which objectives read scores."""

Rescale: TypeAlias = Callable[[tuple[float, ...]], tuple[float, ...]]
"""The rewards of one row -> its scores."""
Given: TypeAlias = Literal["rewards", "scores"]


@dataclass(frozen=True)
class Scaled:
    """How the rewards of a row become its scores, and the line of the log that says so."""

    rescale: Rescale
    line: str


Scaling: TypeAlias = Callable[[Preferences, str], Scaled | None]
"""The rows and the method's name -> how its scores come from rewards; None where they are the rewards."""


@dataclass(frozen=True)
class MinMax:
    """(reward - low) / (high - low), in [0, 1] (SmPO, arXiv 2506.02698)."""

    low: float
    high: float

    def __call__(self, rewards: tuple[float, ...]) -> tuple[float, ...]:
        return tuple((reward - self.low) / (self.high - self.low) for reward in rewards)


def win_fractions(rewards: tuple[float, ...]) -> tuple[float, ...]:
    """The share of the other images that each strictly beats, in [0, 1] (RankDPO, arXiv 2410.18013, algorithm 1)."""
    return tuple(sum(reward > other for other in rewards) / (len(rewards) - 1) for reward in rewards)


def as_they_are(rows: Preferences, method: str) -> Scaled | None:
    """No change: only the order of scores matters to the method."""
    return None


def win_fraction(rows: Preferences, method: str) -> Scaled | None:
    """The share of the other images that each beats, row by row."""
    return Scaled(win_fractions, f"scores: the share of the others that each image beats, for {method}")


def min_max(rows: Preferences, method: str) -> Scaled | None:
    """The rewards of the whole data set, from the lowest at 0 to the highest at 1.

    Raises:
        ValueError: the rows hold labels, which are no rewards.
    """
    if _labels_only(rows.scores):
        raise ValueError(
            f"{rows.source}: {method} needs a reward for each image, these rows hold only which is better: score "
            "them by `diffpref data score --reward NAME --output FILE`, give a data set with a score for each image "
            "(chosen_score and rejected_score, or lists with scores), or use objective: dpo."
        )
    low, high = min(map(min, rows.scores)), max(map(max, rows.scores))
    return Scaled(MinMax(low, high), f"scores: rewards {low:.4g} to {high:.4g} scaled to [0, 1]")


SCALINGS: Mapping[str, Scaling] = {"none": as_they_are, "min_max": min_max, "win_fraction": win_fraction}
"""The value of an objective's `scaling` -> what it does."""


def scaling_of(objective: Objective) -> Scaling:
    """The scaling that the objective names.

    Raises:
        ValueError: there is no such scaling.
    """
    name = objective.scaling
    if name not in SCALINGS:
        raise ValueError(f"{type(objective).__name__}.scaling must be one of {', '.join(SCALINGS)}, got {name!r}.")
    return SCALINGS[name]


def _given_rewards(scaling: Scaling, rows: Preferences, method: str) -> Scaled | None:
    return scaling(rows, method)


def _given_scores(scaling: Scaling, rows: Preferences, method: str) -> Scaled | None:
    if scaling is not as_they_are:
        _check_unit(rows, method)
    return None


# The value of `given` -> how scores are made of what the data holds.
_GIVEN: Mapping[str, Callable[[Scaling, Preferences, str], Scaled | None]] = {
    "rewards": _given_rewards,
    "scores": _given_scores,
}


@dataclass(frozen=True)
class _Rescored:
    """Reads a row and rescales its rewards, so that nothing has to be read before."""

    read: Callable[[int], Row]
    rescale: Rescale

    def __call__(self, number: int) -> Row:
        row = self.read(number)
        return replace(row, scores=self.rescale(row.scores))


def score(rows: Preferences, objective: Objective, *, given: Given = "rewards") -> Preferences:
    """The rows that the objective can learn from, with the scores that it reads; opens no image.

    Args:
        given: "rewards" become scores as the objective's `scaling` says; "scores" are taken as they are, such as
            RankDPO's phi averaged over several reward models.
        rows: arranged in the objective's form (see `form_of`).

    Raises:
        ValueError: lists of several lengths or below three, scores that prefer nothing, a score that is not finite, or
            labels where the method needs rewards.
    """
    method, form, scaling = type(objective).__name__, form_of(objective), scaling_of(objective)
    _check_finite(rows)
    form.check(rows, method)
    if not form.compares:
        return rows
    unequal = [position for position, scores in enumerate(rows.scores) if len(set(scores)) > 1]
    if not unequal:
        raise ValueError(
            f"{rows.source}: there is no preference in the data, each of its {len(rows)} rows has equal scores for all "
            f"its images, and {method} would learn nothing: score the images so that they differ."
        )
    # Before ties go: rewards of 0 and 1 are told from labels by the rows where both images have the same.
    scaled = _GIVEN[given](scaling, rows, method)
    if len(unequal) < len(rows):
        rows = rows.subset(unequal, dropped={"tie": len(rows) - len(unequal)}, step="scores")
    if scaled is None:
        return rows
    return replace(
        rows,
        read=_Rescored(rows.read, scaled.rescale),
        scores=[scaled.rescale(scores) for scores in rows.scores],
        log=(*rows.log, scaled.line),
    )


def _check_finite(rows: Preferences) -> None:
    for position, scores in enumerate(rows.scores):
        for image, value in enumerate(scores):
            if not (math.isfinite(value) and abs(value) <= _LARGEST):
                raise ValueError(
                    f"{rows[position].where}: image {image} has the score {value}, but scores must be finite "
                    "numbers in float32's range: score the image again, or remove the row."
                )


def _check_unit(rows: Preferences, method: str) -> None:
    for position, scores in enumerate(rows.scores):
        if not all(0 <= value <= 1 for value in scores):
            raise ValueError(
                f"{rows[position].where}: the scores are {list(scores)}, but {method} reads scores in [0, 1]: set "
                "given_scores: rewards, or scale them."
            )


def _labels_only(scores: Sequence[tuple[float, ...]]) -> bool:
    return all(sum(row) == 1 and set(row) <= {0.0, 0.5, 1.0} for row in scores)
