"""The command `diffpref data`: look at preference data, check it, rewrite it as parquet."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from annotated_types import Ge

from diffpref.data.convert import Target, write_parquet
from diffpref.data.preview import write_preview
from diffpref.data.reading import Read, read
from diffpref.data.validate import Validate, validate


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
class Convert:
    """Write preference data as one parquet file."""

    reading: Read
    output: Path
    """The parquet file to write."""
    to: Target = "canonical"
    """Columns of diffpref (prompt, chosen, rejected, ...) or of Pick-a-Pic (caption, jpg_0, jpg_1, ...)."""


@dataclass(frozen=True)
class Score:
    """Score every image by a reward, and write the rows with their scores as parquet, which training reads."""

    reading: Read
    reward: str
    """A reward's name, a YAML file of its settings, or your own function as module:function or file.py:function."""
    output: Path
    """The parquet file to write."""
    contradictions: Literal["relabel", "drop"] = "relabel"
    """Where the reward prefers another image than the data do: the reward decides, or the row is left out."""
    batch_size: Annotated[int, Ge(1)] = 8
    """Rows whose images are scored at once."""
    device: str = ""
    """Where the reward computes; without it a GPU if there is one."""


@dataclass(frozen=True)
class Separable:
    """Ask whether chosen and rejected images are told apart by who drew them, which training would learn as a style."""

    reading: Read
    features: str = "pickscore"
    """Whose view of an image: the image tower of a reward (its name or YAML file; not of the one that made the labels),
    judge (the embedded one), or your own function of a list of images as module:function or file.py:function."""
    device: str = ""
    """Where the features are computed; without it a GPU if there is one."""


def _separable(command: Separable) -> list[str]:
    import torch

    from diffpref.data.features import find_features, of_pairs
    from diffpref.data.separability import measure, require_pairs
    from diffpref.label.progress import Bar

    device = command.device or ("cuda" if torch.cuda.is_available() else "cpu")
    rows = read(command.reading)
    require_pairs(len(rows))
    features = find_features(command.features, device)
    with Bar("features", 2 * len(rows), shown=True) as bar:
        found = measure(*of_pairs(rows, features, lambda pairs: bar(2 * pairs)))
    return [rows.summary(), *found.lines()]


def _score(command: Score) -> list[str]:
    # Rewards load torch, which the other commands do without.
    from diffpref.data.score import score

    return score(
        read(command.reading, ties="keep"),
        command.reward,
        command.output,
        device=command.device,
        batch_size=command.batch_size,
        on_bad_row=command.reading.on_bad_row,
        drop_contradictions=command.contradictions == "drop",
    )


def _run(command: Preview | Validate | Convert | Score | Separable) -> int:
    if isinstance(command, Validate):
        return validate(command)
    if isinstance(command, Separable):
        print("\n".join(_separable(command)))
        return 0
    if not command.output.absolute().parent.is_dir():
        raise ValueError(f"{command.output} cannot be written: its folder does not exist; create it first.")
    if isinstance(command, Score):
        print("\n".join(_score(command)))
        return 0
    preferences = read(command.reading)
    if isinstance(command, Preview):
        write_preview(preferences, command.output, count=command.count, seed=command.seed)
        print(f"{preferences.summary()}\nwritten: {command.output}")
    else:
        written = write_parquet(preferences, command.output, to=command.to)
        print(f"{written.summary()}\nwritten: {command.output} ({len(written)} rows)")
    return 0


def main(arguments: list[str]) -> int:
    """Runs the command; 0 if it succeeded, 1 with a message on stderr if the data or the arguments are wrong.

    Raises:
        SystemExit: tyro's own, for --help (status 0) and for arguments that it cannot parse (status 2).
    """
    command = tyro.extras.subcommand_cli_from_dict(
        {
            "preview": Preview,
            "validate": Validate,
            "convert": Convert,
            "score": Score,
            "separability": Separable,
        },
        prog="diffpref data",
        description="Look at preference data, check it, score it, or rewrite it as parquet.",
        args=arguments,
    )
    try:
        return _run(command)
    except (ValueError, OSError) as problem:
        print(f"diffpref data: {problem}", file=sys.stderr)
        return 1
