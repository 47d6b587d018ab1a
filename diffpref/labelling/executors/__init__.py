"""Executors: who does the shards of a stage. Every one gives the same bytes, because a shard depends only on files."""

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from diffpref.labelling.config import Run
from diffpref.labelling.stages import Stage

Progress: TypeAlias = Callable[[int], None]
"""Called with the number of pictures that any worker has just done."""


@runtime_checkable
class Executor(Protocol):
    """Does shards, somewhere."""

    main: bool
    """Whether this process writes what belongs to the run as a whole, as the plan and the report."""
    shows: bool
    """Whether this process shows its progress."""

    def await_plan(self, path: Path) -> None:
        """Return once the plan may be read or, by the process that writes it, written."""
        ...

    def mine(self, shards: int) -> list[int]:
        """The numbers of the shards that this process must do."""
        ...

    def run(self, stage: Stage, shards: list[int], progress: Progress) -> None:
        """Do these shards; raises the first failure. What was finished stays."""
        ...

    def wait(self, stage: Stage, shards: int) -> bool:
        """Whether every shard of the stage is done, after waiting for other processes where they run at this time."""
        ...

    def close(self) -> None: ...


EXECUTORS: Mapping[str, str] = {
    "local": "diffpref.labelling.executors.local:Local",
    "ranks": "diffpref.labelling.executors.ranks:Ranks",
    "slurm": "diffpref.labelling.executors.slurm:SlurmArray",
    "ray": "diffpref.labelling.executors.ray:RayPool",
}
"""The name in the settings -> the class, which takes the run's settings."""


def find_executor(run: Run) -> Executor:
    """The executor of the settings, started; `local` under a launcher of several processes is `ranks`.

    Raises:
        ValueError: it cannot run here, as ray without the extra.
    """
    launched = run.executor == "local" and int(os.environ.get("WORLD_SIZE", "1")) > 1
    module, _, name = EXECUTORS["ranks" if launched else run.executor].rpartition(":")
    return getattr(importlib.import_module(module), name)(run)
