"""The command `diffpref data preview|validate|convert`: look at preference data, check it, rewrite it as parquet."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from diffpref.data.check import check_rows
from diffpref.data.columns import parse_columns
from diffpref.data.convert import Target, write_parquet
from diffpref.data.preferences import read_preferences
from diffpref.data.preview import write_preview
from diffpref.data.rows import Preferences


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


@dataclass(frozen=True)
class Preview:
    """Write a page that shows rows of preference data."""

    reading: Read
    output: Path = Path("preview.html")
    """The HTML file to write."""
    count: int = 50
    """How many rows to show."""
    seed: int = 0
    """Which rows are drawn."""


@dataclass(frozen=True)
class Validate:
    """Read preference data, decode every image, and print the counts; exit status 1 if anything is wrong."""

    reading: Read
    size_mismatch: Literal["error", "crop"] = "error"
    """"crop" accepts rows whose images differ in size."""
    min_size: int | None = None
    """The least width and height of an image, in pixels."""
    workers: int = 2
    """Threads that decode."""


@dataclass(frozen=True)
class Convert:
    """Write preference data as one parquet file."""

    reading: Read
    output: Path
    """The parquet file to write."""
    to: Target = "canonical"
    """Columns of diffpref (prompt, chosen, rejected, ...) or of Pick-a-Pic (caption, jpg_0, jpg_1, ...)."""


def _read(reading: Reading) -> Preferences:
    return read_preferences(
        reading.source,
        split=reading.split,
        columns=parse_columns(reading.columns),
        on_bad_row=reading.on_bad_row,
        max_rows=reading.max_rows,
        revision=reading.revision,
    )


def _run(command: Preview | Validate | Convert) -> str:
    if not isinstance(command, Validate) and not command.output.absolute().parent.is_dir():
        raise ValueError(f"{command.output} cannot be written: its folder does not exist; create it first.")
    preferences = _read(command.reading)
    if isinstance(command, Preview):
        write_preview(preferences, command.output, count=command.count, seed=command.seed)
        return f"{preferences.summary()}\nwritten: {command.output}"
    if isinstance(command, Convert):
        written = write_parquet(preferences, command.output, to=command.to)
        return f"{written.summary()}\nwritten: {command.output} ({len(written)} rows)"
    return check_rows(
        preferences,
        size_mismatch=command.size_mismatch,
        on_bad_row=command.reading.on_bad_row,
        min_size=command.min_size,
        workers=command.workers,
        full=True,
    ).summary()


def main(arguments: list[str]) -> int:
    """Runs the command; 0 if it succeeded, 1 with a message on stderr if the data or the arguments are wrong.

    Raises:
        SystemExit: tyro's own, for --help (status 0) and for arguments that it cannot parse (status 2).
    """
    command = tyro.extras.subcommand_cli_from_dict(
        {"preview": Preview, "validate": Validate, "convert": Convert},
        prog="diffpref data",
        description="Look at preference data, check it, or rewrite it as parquet.",
        args=arguments,
    )
    try:
        print(_run(command))
    except (ValueError, OSError) as problem:
        print(f"diffpref data: {problem}", file=sys.stderr)
        return 1
    return 0
