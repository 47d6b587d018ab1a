"""Ctrl-C and SIGTERM: they end a run where nothing is lost, and say so, in place of wherever it was just then."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = 3.0
"""Seconds after which one more Ctrl-C is a person's, and not a launcher's that hands the first one on."""


class Stopped(KeyboardInterrupt):
    """A signal ended the run; the text says where it stands."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number

    @property
    def status(self) -> int:
        """The exit status that a shell gives to the signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class StopRequest:
    """What signals have asked for since the loop began."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._since = 0.0
        self._at_once = False

    def notice(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler."""
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            if os.environ.get("RANK", "0") == "0":
                # Not print: a handler may run inside another write to the same stream.
                os.write(2, b"\ndiffpref: stopping after this step, with a checkpoint; Ctrl-C once more: without\n")
        elif number == signal.SIGINT and time.monotonic() - self._since > AGAIN:
            raise Stopped(number, "stopped within a step, without a checkpoint of it")
        if self._at_once:
            raise Stopped(self.number, "stopped")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, where no weights move, a signal raises `Stopped` there and then."""
        self._at_once = True
        try:
            if self.number is not None:
                raise Stopped(self.number, "stopped")
            yield
        finally:
            self._at_once = False

    def agreed(self, accelerator: "Accelerator") -> int | None:
        """The signal that any of the processes has got, the same in all of them; each must ask after the same step."""
        number = self.number or 0
        if accelerator.num_processes > 1:
            import torch

            mine = torch.tensor([number], device=accelerator.device)
            number = int(accelerator.gather(mine).max())  # type: ignore[union-attr]
        return number or None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside, Ctrl-C and SIGTERM are noted, and the loop that asks for them ends."""
    request = StopRequest()
    with _handled(SIGNALS, request.notice):
        yield request


@contextmanager
def terminated(text: str) -> Iterator[None]:
    """Inside, SIGTERM raises `Stopped` with this text, as Ctrl-C raises KeyboardInterrupt."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number, text)

    with _handled((signal.SIGTERM,), stop):
        yield


@contextmanager
def _handled(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside, the handler has the signals; not where Python lets no handler be set, outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
