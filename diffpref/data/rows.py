"""What preference data is: a prompt, its images, their scores; and the lazy collection of such rows."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from diffpref.data.bad_row import KEPT, BadRow, Problem, listed
from diffpref.data.decode import ImageSource

OnBadRow: TypeAlias = Literal["error", "skip"]
Ties: TypeAlias = Literal["drop", "keep"]
SKIP_REMEDY = 'Or leave such rows out with --on_bad_row skip (in Python: on_bad_row="skip").'


def check_choices(*, on_bad_row: str = "error", ties: str = "drop", max_rows: int | None = None) -> None:
    """Raise ValueError where a choice that readers of rows share has an unknown value."""
    if on_bad_row not in ("error", "skip"):
        raise ValueError(f'on_bad_row must be "error" or "skip", got {on_bad_row!r}.')
    if ties not in ("drop", "keep"):
        raise ValueError(f'ties must be "drop" or "keep", got {ties!r}.')
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows must be 1 or above, got {max_rows}; leave it out to read all rows.")


@dataclass(frozen=True, kw_only=True)
class Row:
    """The images of one prompt; scores[i] belongs to images[i] and higher is better."""

    prompt: str
    images: tuple[ImageSource, ...]
    scores: tuple[float, ...]
    where: str
    """What an error message names, like "pairs.parquet row 12"; rows count from 0."""
    models: tuple[str, ...] = ()
    """Which model made each image; empty where the source does not say."""


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """Rows that are read when they are asked for: `len`, indexing and iteration; only scores are kept in memory."""

    source: str
    schema: str
    """What was detected, for people."""
    read: Callable[[int], Row]
    """Reads the row of a number in `index`."""
    index: Sequence[int]
    """The numbers of the kept rows."""
    scores: Sequence[tuple[float, ...]]
    """The scores of the kept rows, so that sampling and pairing open no image."""
    dropped: dict[str, int]
    """How many rows (after `as_pairs`: rows and pairs) were left out, for each reason."""
    log: tuple[str, ...] = ()
    """One line for each step that made this collection."""
    read_prompt: Callable[[int], str] | None = None
    """Reads the prompt alone of a number in `index`, where the source can do so without its images."""
    problems: tuple[Problem, ...] = ()
    """The first bad rows that were left out; ties and other rows that mean something are none."""

    def __post_init__(self) -> None:
        assert len(self.index) == len(self.scores), "one tuple of scores for each kept row"

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, position: int) -> Row:
        return self.read(int(self.index[position]))

    def prompt(self, position: int) -> str:
        """The prompt of a row; its images are not read where the source allows that."""
        return self.read_prompt(int(self.index[position])) if self.read_prompt else self[position].prompt

    def __iter__(self) -> Iterator[Row]:
        return (self[position] for position in range(len(self)))

    def subset(self, positions: Sequence[int], *, dropped: Mapping[str, int], step: str) -> "Preferences":
        """The rows at these positions; `dropped` counts why the others went and `step` names who dropped them."""
        if not positions:
            raise ValueError(f"{self.source}: no row is left after {step}: {count_reasons(dropped)}.")
        line = f"{step}: {len(self)} rows, {len(positions)} kept{count_dropped(dropped)}"
        return replace(
            self,
            index=[int(self.index[p]) for p in positions],
            scores=[self.scores[p] for p in positions],
            dropped=dict(Counter(self.dropped) + Counter(dropped)),
            log=(*self.log, line),
        )

    def summary(self) -> str:
        """What was detected, and how many rows each step read, kept and dropped, for people to read."""
        return "\n".join([f"source: {self.source}", f"schema: {self.schema}", *self.log])


class Dropped:
    """Rows that are left out while a source is read: counted by reason, and the bad ones remembered."""

    def __init__(self, on_bad_row: OnBadRow) -> None:
        self.on_bad_row = on_bad_row
        self.counts: Counter[str] = Counter()
        self.problems: list[Problem] = []

    def bad(self, where: str, problem: BadRow) -> None:
        """Count a bad row.

        Raises:
            ValueError: with on_bad_row="error"; the message names the row.
        """
        if self.on_bad_row == "error":
            raise ValueError(f"{where}: {problem} {SKIP_REMEDY}") from None
        self.counts[problem.reason] += 1
        if len(self.problems) < KEPT:
            self.problems.append(Problem(where, problem.reason, str(problem)))

    def nothing_left(self, source: str, read: int, remedy: str = "") -> ValueError:
        """The error of a source without a usable row, which lists the bad ones."""
        message = f"{source}: no usable row among {read} read: {count_reasons(self.counts)}.{remedy}"
        total = sum(self.counts[reason] for reason in {problem.reason for problem in self.problems})
        return ValueError(f"{message}\n{listed(self.problems, total)}" if self.problems else message)


def count_reasons(dropped: Mapping[str, int]) -> str:
    """The counts in words: "2 tie, 1 no label"."""
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "there was none"


def count_dropped(dropped: Mapping[str, int]) -> str:
    """The end of a summary line: ", 3 dropped (2 tie, 1 no label)", or nothing."""
    return f", {sum(dropped.values())} dropped ({count_reasons(dropped)})" if dropped else ""


def in_memory(
    source: str,
    schema: str,
    rows: Sequence[Row],
    *,
    dropped: Dropped | None = None,
) -> Preferences:
    """Rows that are in memory already (images by path) as a collection.

    Args:
        dropped: the rows that were left out before.

    Raises:
        ValueError: there is no row.
    """
    dropped = dropped or Dropped("skip")
    reasons = dict(dropped.counts)
    if not rows:
        raise dropped.nothing_left(source, sum(reasons.values()))
    return Preferences(
        source=source,
        schema=schema,
        read=rows.__getitem__,
        index=range(len(rows)),
        scores=[row.scores for row in rows],
        dropped=reasons,
        log=(f"read: {len(rows) + sum(reasons.values())} rows, {len(rows)} kept{count_dropped(reasons)}",),
        problems=tuple(dropped.problems),
    )
