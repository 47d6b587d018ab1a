"""Seconds per training step, between two lines of metrics."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StepClock:
    """Runs from its start or its last lap, and stands still in a pause."""

    def __init__(self, step: int) -> None:
        self._step, self._start = step, time.monotonic()

    def lap(self, step: int) -> float:
        """Seconds for each step since the last lap; the next one begins now."""
        now = time.monotonic()
        seconds = (now - self._start) / (step - self._step)
        self._step, self._start = step, now
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count: validation, sampling."""
        begin = time.monotonic()
        yield
        self._start += time.monotonic() - begin
