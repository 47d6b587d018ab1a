"""What a method needs of its data, checked before any long work; rewards become the scores that its objective reads."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from diffpref.data.rows import Preferences, Row

CANDIDATES = ("pairs", "lists", "chain_pairs", "real_fake")
SCALINGS = ("none", "min_max", "win_fraction")
_LARGEST = (2 - 2**-23) * 2.0**127
"""The largest finite number of float32, in which objectives read scores."""

Rescale: TypeAlias = Callable[[tuple[float, ...]], tuple[float, ...]]
"""The rewards of one row -> its scores."""


@dataclass(frozen=True)
class MinMax:
    """(reward - low) / (high - low), in [0, 1] (SmPO, arXiv 2506.02698)."""

    low: float
    high: float

    def __call__(self, rewards: tuple[float, ...]) -> tuple[float, ...]:
        return tuple((reward - self.low) / (self.high - self.low) for reward in rewards)


def win_fractions(rewards: tuple[float, ...]) -> tuple[float, ...]:
    """The share of the other pictures that each strictly beats, in [0, 1] (RankDPO, arXiv 2410.18013, algorithm 1)."""
    return tuple(sum(reward > other for other in rewards) / (len(rewards) - 1) for reward in rewards)


@dataclass(frozen=True)
class _Rescored:
    """Reads a row and rescales its rewards, so that nothing has to be read before."""

    read: Callable[[int], Row]
    rescale: Rescale

    def __call__(self, number: int) -> Row:
        row = self.read(number)
        return replace(row, scores=self.rescale(row.scores))


def score(rows: Preferences, objective: object, *, given: Literal["rewards", "scores"] = "rewards") -> Preferences:
    """The rows that the objective can learn from, with the scores that it reads; opens no picture.

    Args:
        given: "rewards" become scores as the objective's `scaling` says; "scores" are taken as they are, such as
            RankDPO's phi averaged over several reward models.
        rows: as pairs (see `as_pairs`) for an objective of `candidates` "pairs" or "chain_pairs", else as read.
        objective: may have `candidates` ("pairs" where it has none) and `scaling` ("none").

    Raises:
        ValueError: lists of several lengths or below three, scores that prefer nothing, a score that is not finite, or
            labels where the method needs rewards.
    """
    method = type(objective).__name__
    candidates, scaling = getattr(objective, "candidates", "pairs"), getattr(objective, "scaling", "none")
    for name, value, known in (("candidates", candidates, CANDIDATES), ("scaling", scaling, SCALINGS)):
        if value not in known:
            raise ValueError(f"{method}.{name} must be one of {', '.join(known)}, got {value!r}.")
    _check_finite(rows)
    if candidates == "real_fake":
        return rows
    if candidates == "lists":
        _check_lengths(rows, method)
    assert candidates == "lists" or all(len(scores) == 2 for scores in rows.scores), "as_pairs makes pairs"
    kept = [position for position, scores in enumerate(rows.scores) if len(set(scores)) > 1]
    if not kept:
        raise ValueError(
            f"{rows.source}: there is no preference in the data, each of its {len(rows)} rows has equal scores for all "
            f"its pictures, and {method} would learn nothing: score the pictures so that they differ."
        )
    # Before ties go: rewards of 0 and 1 are told from labels by the rows where both pictures have the same.
    rescale, line = _rescale(rows, scaling if given == "rewards" else "none", method)
    if given == "scores" and scaling != "none":
        _check_unit(rows, method)
    if len(kept) < len(rows):
        rows = rows.subset(kept, dropped={"tie": len(rows) - len(kept)}, step="scores")
    if rescale is None:
        return rows
    return replace(
        rows,
        read=_Rescored(rows.read, rescale),
        scores=[rescale(scores) for scores in rows.scores],
        log=(*rows.log, line),
    )


def _check_finite(rows: Preferences) -> None:
    for position, scores in enumerate(rows.scores):
        for picture, value in enumerate(scores):
            if not (math.isfinite(value) and abs(value) <= _LARGEST):
                raise ValueError(
                    f"{rows[position].where}: picture {picture} has the score {value}, but scores must be finite "
                    "numbers in float32's range: score the picture again, or remove the row."
                )


def _check_unit(rows: Preferences, method: str) -> None:
    for position, scores in enumerate(rows.scores):
        if not all(0 <= value <= 1 for value in scores):
            raise ValueError(
                f"{rows[position].where}: the scores are {list(scores)}, but {method} reads scores in [0, 1]: set "
                "given_scores: rewards, or scale them."
            )


def _check_lengths(rows: Preferences, method: str) -> None:
    lengths = Counter(len(scores) for scores in rows.scores)
    if max(lengths) <= 2:
        raise ValueError(
            f"{rows.source}: {method} ranks lists of three or more pictures, these rows have "
            f"{'pairs' if 2 in lengths else 'one picture'}: use objective: dpo (or smpo with rewards), "
            "or data with longer lists."
        )
    if len(lengths) > 1:
        (usual, most), *others = lengths.most_common()
        few = ", ".join(f"{count} of {length}" for length, count in sorted(others))
        odd = next(position for position, scores in enumerate(rows.scores) if len(scores) != usual)
        raise ValueError(
            f"{rows.source}: {method} needs lists of one length, but there are {most} rows of {usual} pictures and "
            f"{few} (the first is {rows[odd].where}): split the data by length and train on one part, or use "
            "objective: dpo, which compares two pictures at a time."
        )


def _rescale(rows: Preferences, scaling: str, method: str) -> tuple[Rescale | None, str]:
    """How the rewards of a row become its scores, and the line that says so."""
    if scaling == "none":
        return None, ""
    if scaling == "win_fraction":
        return win_fractions, f"scores: the share of the others that each picture beats, for {method}"
    if _labels_only(rows.scores):
        raise ValueError(
            f"{rows.source}: {method} needs a reward for each picture, these rows hold only which is better: give a "
            "data set with a score for each picture (chosen_score and rejected_score, or lists with scores), or use "
            "objective: dpo."
        )
    low, high = min(map(min, rows.scores)), max(map(max, rows.scores))
    return MinMax(low, high), f"scores: rewards {low:.4g} to {high:.4g} scaled to [0, 1]"


def _labels_only(scores: Sequence[tuple[float, ...]]) -> bool:
    return all(sum(row) == 1 and set(row) <= {0.0, 0.5, 1.0} for row in scores)
