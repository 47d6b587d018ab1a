"""Do the better images differ from the worse ones in something that a person did not judge? A policy learns that first.

For each property: in which share of rows does the better image have more of it, where equal ones count half?"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from diffpref.data.look import Look

SHARE, CERTAIN = 0.75, 0.6
"""A property is told where it decides so large a share of rows, and the 95 % interval lies above the second number."""


@dataclass(frozen=True)
class _Property:
    more: str
    less: str
    of: Callable[[Look], float]
    remedy: str


def _area(look: Look) -> float:
    return look.size[0] * look.size[1]


def _sharpness(look: Look) -> float:
    return look.pixels.sharpness if look.pixels else 0.0


def _brightness(look: Look) -> float:
    return look.pixels.brightness if look.pixels else 0.0


_PROPERTIES: Mapping[str, _Property] = {
    "size": _Property("larger", "smaller", _area, "scale both sides of a row to one size"),
    "sharpness": _Property("sharper", "blurrier", _sharpness, "compare images of one source"),
    "brightness": _Property("brighter", "darker", _brightness, "compare images of one source"),
}
"""Where pixels were not decoded, all images are equally sharp and bright, and nothing is told."""


class Sides:
    """Counts, row by row, on which side a property lies."""

    def __init__(self) -> None:
        self.rows = 0
        self.more: Counter[str] = Counter()
        self.less: Counter[str] = Counter()
        self.formats: Counter[tuple[str, str]] = Counter()

    def add(self, scores: Sequence[float], looks: Sequence[Look]) -> None:
        """Count the best and the worst image of a row; a row of equal scores has neither."""
        best, worst = scores.index(max(scores)), scores.index(min(scores))
        if scores[best] == scores[worst]:
            return
        self.rows += 1
        better, worse = looks[best], looks[worst]
        for name, kind in _PROPERTIES.items():
            high, low = kind.of(better), kind.of(worse)
            self.more[name] += high > low
            self.less[name] += high < low
        if better.format != worse.format:
            self.formats[better.format, worse.format] += 1

    def findings(self) -> list[tuple[str, int, str]]:
        """(kind, rows, one line) of each property that tells the sides apart."""
        found = []
        for name, kind in _PROPERTIES.items():
            more, less = self.more[name], self.less[name]
            for rows, others, word in ((more, less, kind.more), (less, more, kind.less)):
                found += self._finding(f"side {name}", rows, others, f"is {word}", kind.remedy)
        for (better, worse), rows in self.formats.items():
            what, remedy = f"is a {better} and the worse a {worse}", "save both sides in one format"
            found += self._finding("side format", rows, self.formats[worse, better], what, remedy)
        return found

    def _finding(self, name: str, rows: int, others: int, what: str, remedy: str) -> list[tuple[str, int, str]]:
        """The finding, where `rows` against `others`, with half of all the rest, is no chance."""
        # Its module computes with tensors: torch is loaded where there is something to count.
        from diffpref.evaluate.statistics import wilson_interval

        wins = (self.rows + rows - others) / 2
        if not self.rows or wins / self.rows < SHARE or wilson_interval(wins, self.rows)[0] <= CERTAIN:
            return []
        share = f"the better image {what} in {rows / self.rows:.0%} of {self.rows} rows"
        return [(name, rows, f"{share}, and training can learn that in place of what was judged: {remedy}")]
