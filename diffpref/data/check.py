"""Opens every image before training does, so that a bad file is found in the first minute and not in the last."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from diffpref.data.bad_row import BadRow
from diffpref.data.decode import ImageSource, decode, image_size
from diffpref.data.rows import OnBadRow, Preferences, check_choices

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
            sizes = [self._size(image, number) for number, image in enumerate(row.images)]
            if self.equal_sizes and len(set(sizes)) > 1:
                shown = ", ".join(f"{width}x{height}" for width, height in sizes)
                raise BadRow(
                    "sizes differ",
                    f"the images are {shown} pixels, but all images of a prompt must have one size: "
                    "make them equal, or crop them with --size_mismatch crop.",
                )
        except BadRow as problem:
            return BadRow(problem.reason, f"{row.where}: {problem}")
        return None

    def _size(self, source: ImageSource, number: int) -> tuple[int, int]:
        try:
            size = decode(source).size if self.full else image_size(source)
        except BadRow as problem:
            raise BadRow(problem.reason, f"image {number}: {problem}") from None
        if min(size) < self.min_size:
            raise BadRow(
                "too small",
                f"image {number} is {size[0]}x{size[1]} pixels, below the minimum of {self.min_size}: "
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
    on_bad_row: OnBadRow = "error",
    min_size: int | None = None,
    workers: int = 2,
    full: bool = False,
) -> Preferences:
    """The rows whose images exist, open, are large enough, and are of one size within each row.

    Args:
        size_mismatch: "crop" accepts images of different sizes, for a later step to crop.
        on_bad_row: "skip" drops whole rows and counts them by reason.
        min_size: the least width and height, in pixels; None accepts any.
        workers: threads that read files.
        full: decode every image, which also finds files that are cut short; else headers only.

    Raises:
        ValueError: the first bad row (with on_bad_row="error"), or no row left.
    """
    if size_mismatch not in ("error", "crop"):
        raise ValueError(f'size_mismatch must be "error" or "crop", got {size_mismatch!r}.')
    check_choices(on_bad_row=on_bad_row)
    if workers < 1:
        raise ValueError(f"workers must be 1 or above, got {workers}.")
    good: list[int] = []
    dropped: Counter[str] = Counter()
    check = _Check(preferences, size_mismatch == "error", min_size or 1, full)
    for position, problem in enumerate(_in_order(check, workers)):
        if problem is None:
            good.append(position)
        elif on_bad_row == "error":
            raise ValueError(f"{problem} Or leave such rows out with --on_bad_row skip.")
        else:
            dropped[problem.reason] += 1
    return preferences.subset(good, dropped=dropped, step="images decoded" if full else "images checked")
