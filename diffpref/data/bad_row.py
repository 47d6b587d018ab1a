"""The error of a row that cannot be used, and the list of such rows for people."""

from collections.abc import Sequence
from dataclasses import dataclass

SHOWN = 20
"""Bad rows that a message lists."""
KEPT = 1000
"""Bad rows that are remembered; a data set of a million bad rows shall not fill the memory with messages."""


class BadRow(ValueError):
    """A row that cannot be used: `reason` is what is counted, the message what is shown."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Problem:
    """A bad row that was met: where it is, what is counted, what is shown."""

    where: str
    """The file with the row's number, or the image's file in a folder."""
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def listed(problems: Sequence[Problem], total: int) -> str:
    """The first problems, a line each, and how many more there are of the total."""
    lines = [f"  {problem}" for problem in problems[:SHOWN]]
    more = total - len(lines)
    return "\n".join([*lines, f"  and {more} more"] if more > 0 else lines)
