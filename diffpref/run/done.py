"""Whether a run's folder is finished: a marker of its own, which says when, and nothing else decides."""

import time
from collections.abc import Sequence
from pathlib import Path

from diffpref.files import atomic

MARKER = "done.json"


def mark_done(folder: Path, **facts: object) -> None:
    """Write that everything in the folder is complete, with some facts for people."""
    atomic.write_json(folder / MARKER, {**facts, "finished": time.strftime("%Y-%m-%dT%H:%M:%S")})


def is_done(folder: Path) -> bool:
    """Whether the folder's run has finished."""
    return (folder / MARKER).is_file()


def finished(run: Path, folders: Sequence[Path]) -> Path:
    """The first of the folders whose run has finished.

    Raises:
        ValueError: none has; names the run.
    """
    for folder in folders:
        if is_done(folder):
            return folder
    raise ValueError(
        f"{run} holds no finished run: train it to its end, with --resume_from_checkpoint latest if need be."
    )
