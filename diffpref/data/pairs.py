"""Lists turned into pairs of images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from diffpref.data.rows import Preferences, Row, Ties, count_dropped

Pairing: TypeAlias = Literal["all", "best_worst"]


def _every_two(scores: Sequence[float]) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(scores)) for j in range(i + 1, len(scores))]


def _extremes(scores: Sequence[float]) -> list[tuple[int, int]]:
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    return [(min(best, worst), max(best, worst))]


# The value of `lists` -> which images of a list are compared.
_PAIRINGS: Mapping[str, Callable[[Sequence[float]], list[tuple[int, int]]]] = {
    "all": _every_two,
    "best_worst": _extremes,
}


@dataclass(frozen=True)
class _PairReader:
    lists: Preferences
    triples: np.ndarray
    """(position of the list, first image, second image) of each pair."""

    def __call__(self, number: int) -> Row:
        position, *pair = (int(n) for n in self.triples[number])
        row = self.lists[position]
        if len(row.images) == 2:
            return row
        return Row(
            prompt=row.prompt,
            images=tuple(row.images[i] for i in pair),
            scores=tuple(row.scores[i] for i in pair),
            # The place of a random crop is drawn from this text: other words would be other crops.
            where=f"{row.where} pictures {pair[0]} and {pair[1]}",
            models=tuple(row.models[i] for i in pair) if row.models else (),
        )

    def prompt(self, number: int) -> str:
        return self.lists.prompt(int(self.triples[number][0]))


def as_pairs(preferences: Preferences, *, lists: Pairing = "all", ties: Ties = "drop") -> Preferences:
    """Rows of two images in the order of the list (the scores say which is better); pairs pass through.

    Args:
        lists: "all" compares every two images of a list, "best_worst" its extremes only.
        ties: "drop" leaves out pairs of equal scores from lists, and counts them; "keep" keeps them.
    """
    if lists not in _PAIRINGS:
        raise ValueError(f'lists must be "all" or "best_worst", got {lists!r}.')
    if all(len(scores) == 2 for scores in preferences.scores):
        return preferences
    triples: list[tuple[int, int, int]] = []
    tied = 0
    for position, scores in enumerate(preferences.scores):
        pairs = _PAIRINGS[lists](scores)
        unequal = [(i, j) for i, j in pairs if ties == "keep" or scores[i] != scores[j]]
        triples += [(position, i, j) for i, j in unequal]
        tied += len(pairs) - len(unequal)
    counted = {"tie": tied} if tied else {}
    read = _PairReader(preferences, np.array(triples, dtype=np.int32).reshape(-1, 3))
    return Preferences(
        source=preferences.source,
        schema=preferences.schema,
        read=read,
        index=range(len(triples)),
        scores=[(preferences.scores[p][i], preferences.scores[p][j]) for p, i, j in triples],
        dropped={**preferences.dropped, **({"tie": preferences.dropped.get("tie", 0) + tied} if tied else {})},
        log=(*preferences.log, f"pairs: {len(triples)} from {len(preferences)} rows{count_dropped(counted)}"),
        read_prompt=read.prompt,
        problems=preferences.problems,
    )
