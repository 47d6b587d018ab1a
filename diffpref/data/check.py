"""Opens every image before training does, so that a bad file is found in the first minute and not in the last."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from diffpref.data.bad_row import KEPT, BadRow, Problem
from diffpref.data.look import SIDE, Look, look_at
from diffpref.data.poison import Finding, Poison
from diffpref.data.rows import OnBadRow, Preferences, Row, check_choices

_WINDOW = 256


@dataclass(frozen=True)
class _Check:
    preferences: Preferences
    equal_sizes: bool
    min_size: int
    full: bool
    side: int

    def __call__(self, position: int) -> "tuple[Row, Sequence[Look]] | Problem":
        row = self.preferences[position]
        try:
            looks = self._looks(row)
            if self.equal_sizes and len({look.size for look in looks}) > 1:
                shown = ", ".join("{}x{}".format(*look.size) for look in looks)
                raise BadRow(
                    "sizes differ",
                    f"the images are {shown} pixels, but all images of a prompt must have one size: "
                    "make them equal, or crop them with --size_mismatch crop.",
                )
        except BadRow as problem:
            return Problem(row.where, problem.reason, str(problem))
        return row, looks

    def _looks(self, row: Row) -> list[Look]:
        """Every image, also where an earlier one is bad: one repair for a row, not one for each start."""
        looks, bad = [], []
        for number in range(len(row.images)):
            try:
                looks.append(self._look(row, number))
            except BadRow as problem:
                bad.append(problem)
        if bad:
            raise BadRow(bad[0].reason, " ".join(map(str, bad)))
        return looks

    def _look(self, row: Row, number: int) -> Look:
        try:
            look = look_at(row.images[number], decoded=self.full, side=self.side)
        except BadRow as problem:
            raise BadRow(problem.reason, f"image {number}: {problem}") from None
        width, height = look.size
        if min(look.size) < self.min_size:
            raise BadRow(
                "too small",
                f"image {number} is {width}x{height} pixels, below the minimum of {self.min_size}: "
                "remove it, or lower the minimum.",
            )
        return look


def _in_order(check: _Check, workers: int) -> Iterator[tuple[Row, Sequence[Look]] | Problem]:
    """The verdict of each row, where only a window of rows is open at a time."""
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(check.preferences), _WINDOW):
            yield from pool.map(check, range(start, min(start + _WINDOW, len(check.preferences))))


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What opening every image of a data set has shown."""

    good: Sequence[int]
    """Positions of the rows that can be used."""
    dropped: Counter[str]
    """How many rows cannot, for each reason."""
    problems: Sequence[Problem]
    """The first of them."""
    findings: Sequence[Finding]
    """What would train a model to something else than is meant."""


def examine(
    preferences: Preferences,
    poison: Poison | None,
    *,
    size_mismatch: Literal["error", "crop"] = "error",
    min_size: int | None = None,
    workers: int = 2,
    full: bool = False,
    side: int = SIDE,
    stop: bool = False,
) -> Examined:
    """Open every image of every row once; the arguments are those of `check_rows`.

    Args:
        poison: counts the good rows; None counts nothing.
        side: of the square on which sharpness is measured, in pixels.
        stop: end at the first bad row.
    """
    if size_mismatch not in ("error", "crop"):
        raise ValueError(f'size_mismatch must be "error" or "crop", got {size_mismatch!r}.')
    if workers < 1:
        raise ValueError(f"workers must be 1 or above, got {workers}.")
    good: list[int] = []
    problems: list[Problem] = []
    dropped: Counter[str] = Counter()
    check = _Check(preferences, size_mismatch == "error", min_size or 1, full, side)
    for position, verdict in enumerate(_in_order(check, workers)):
        if isinstance(verdict, Problem):
            dropped[verdict.reason] += 1
            problems += [verdict] if len(problems) < KEPT else []
            if stop:
                break
        else:
            good.append(position)
            if poison is not None:
                poison.add(*verdict)
    return Examined(good=good, dropped=dropped, problems=problems, findings=poison.findings() if poison else ())


def check_rows(
    preferences: Preferences,
    *,
    size_mismatch: Literal["error", "crop"] = "error",
    on_bad_row: OnBadRow = "error",
    min_size: int | None = None,
    workers: int = 2,
    full: bool = False,
    poison: Poison | None = None,
) -> Preferences:
    """The rows whose images exist, open, are large enough, and are of one size within each row.

    Args:
        size_mismatch: "crop" accepts images of different sizes, for a later step to crop.
        on_bad_row: "skip" drops whole rows and counts them by reason.
        min_size: the least width and height, in pixels; None accepts any.
        workers: threads that read files.
        full: decode every image, which also finds files that are cut short; else headers only.
        poison: counts what would train a model to something else than is meant; its findings join the log.

    Raises:
        ValueError: the first bad row (with on_bad_row="error"), or no row left.
    """
    check_choices(on_bad_row=on_bad_row)
    seen = examine(
        preferences,
        poison,
        size_mismatch=size_mismatch,
        min_size=min_size,
        workers=workers,
        full=full,
        stop=on_bad_row == "error",
    )
    if seen.problems and on_bad_row == "error":
        raise ValueError(f"{seen.problems[0]} Or leave such rows out with --on_bad_row skip.")
    kept = preferences.subset(seen.good, dropped=seen.dropped, step="images decoded" if full else "images checked")
    warnings = tuple(f"warning: {finding.text}." for finding in seen.findings)
    return replace(kept, log=(*kept.log, *warnings), problems=(*preferences.problems, *seen.problems)[:KEPT])
