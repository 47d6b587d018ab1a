"""Which preference data a command reads, and how: the flags that all commands of `diffpref data` share."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from diffpref.data.columns import parse_columns
from diffpref.data.preferences import read_preferences
from diffpref.data.rows import OnBadRow, Preferences, Ties


@dataclass(frozen=True)
class Reading:
    """What is read, and how."""

    source: tyro.conf.Positional[str]
    """A file, a folder, or the name of a hub data set."""
    split: str = "train"
    """The split of a saved or hub data set."""
    columns: tuple[str, ...] = ()
    """Columns under other names: prompt=my_caption chosen=a."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a row that cannot be used, or leave it out and count it."""
    max_rows: int | None = None
    """How many rows are looked at, from the start."""
    revision: str | None = None
    """The commit, branch or tag of a hub data set."""


Read = Annotated[Reading, tyro.conf.arg(name="")]


def read(reading: Reading, *, on_bad_row: OnBadRow | None = None, ties: Ties = "drop") -> Preferences:
    """The rows of the source.

    Args:
        on_bad_row: in place of the user's choice.
    """
    return read_preferences(
        reading.source,
        split=reading.split,
        columns=parse_columns(reading.columns),
        on_bad_row=on_bad_row or reading.on_bad_row,
        max_rows=reading.max_rows,
        revision=reading.revision,
        ties=ties,
    )
