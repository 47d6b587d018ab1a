"""Opens every picture before training does, so that a bad file is found in the first minute and not in the last."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from diffpref.data.rows import BadRow, Picture, Preferences, decode, picture_size

_WINDOW = 256


@dataclass(frozen=True)
class _Check:
    preferences: Preferences
    equal_sizes: bool
    min_size: int
    full: bool

    def __call__(self, position: int) -> BadRow | None:
        row = self.preferences[position]
        try:
            sizes = [self._size(picture, number) for number, picture in enumerate(row.pictures)]
            if self.equal_sizes and len(set(sizes)) > 1:
                found = ", ".join(f"{width}x{height}" for width, height in sizes)
                raise BadRow(
                    "sizes differ",
                    f"the pictures are {found} pixels, but all pictures of a prompt must have one size: "
                    "make them equal, or crop them with --size_mismatch crop.",
                )
        except BadRow as problem:
            return BadRow(problem.reason, f"{row.where}: {problem}")
        return None

    def _size(self, picture: Picture, number: int) -> tuple[int, int]:
        try:
            size = decode(picture).size if self.full else picture_size(picture)
        except BadRow as problem:
            raise BadRow(problem.reason, f"picture {number}: {problem}") from None
        if min(size) < self.min_size:
            raise BadRow(
                "too small",
                f"picture {number} is {size[0]}x{size[1]} pixels, below the minimum of {self.min_size}: "
                "remove it, or lower the minimum.",
            )
        return size


def _in_order(check: _Check, workers: int) -> Iterator[BadRow | None]:
    """The verdict of each row, where only a window of rows is open at a time."""
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(check.preferences), _WINDOW):
            yield from pool.map(check, range(start, min(start + _WINDOW, len(check.preferences))))


def check_rows(
    preferences: Preferences,
    *,
    size_mismatch: Literal["error", "crop"] = "error",
    on_bad_row: Literal["error", "skip"] = "error",
    min_size: int | None = None,
    workers: int = 2,
    full: bool = False,
) -> Preferences:
    """The rows whose pictures exist, open, are large enough, and are of one size within each row.

    Args:
        size_mismatch: "crop" accepts pictures of different sizes, for a later step to crop.
        on_bad_row: "skip" drops whole rows and counts them by reason.
        min_size: the least width and height, in pixels; None accepts any.
        workers: threads that read files.
        full: decode every picture, which also finds files that are cut short; else headers only.

    Raises:
        ValueError: the first bad row (with on_bad_row="error"), or no row left.
    """
    if size_mismatch not in ("error", "crop"):
        raise ValueError(f'size_mismatch must be "error" or "crop", got {size_mismatch!r}.')
    if on_bad_row not in ("error", "skip"):
        raise ValueError(f'on_bad_row must be "error" or "skip", got {on_bad_row!r}.')
    if workers < 1:
        raise ValueError(f"workers must be 1 or above, got {workers}.")
    kept: list[int] = []
    dropped: Counter[str] = Counter()
    check = _Check(preferences, size_mismatch == "error", min_size or 1, full)
    for position, problem in enumerate(_in_order(check, workers)):
        if problem is None:
            kept.append(position)
        elif on_bad_row == "error":
            raise ValueError(f"{problem} Or leave such rows out with --on_bad_row skip.")
        else:
            dropped[problem.reason] += 1
    return preferences.subset(kept, dropped=dropped, step="pictures decoded" if full else "pictures checked")
