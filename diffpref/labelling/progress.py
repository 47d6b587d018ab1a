"""The progress of a stage in pictures: a bar on a terminal, a line now and then in a log."""

import sys
from types import TracebackType

from tqdm import tqdm


class Bar:
    """Counts pictures of one stage; shows how many a second, and the time that is left."""

    def __init__(self, name: str, total: int, *, shown: bool) -> None:
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            desc=f"{name:<20}",
            unit="image",
            disable=not shown,
            dynamic_ncols=terminal,
            # A log keeps every line.
            mininterval=0.2 if terminal else 10.0,
            ascii=None if terminal else True,
        )

    def __call__(self, count: int) -> None:
        self._bar.update(count)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
