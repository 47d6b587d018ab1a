"""Executors: who does the shards of a stage. All give the same bytes, because a shard depends only on files."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from diffpref.label.stages import Stage
from diffpref.settings.axis import Axis

Progress: TypeAlias = Callable[[int], None]
"""Called with the number of images that any worker has just done."""


@runtime_checkable
class Workers(Protocol):
    """An executor at work: does shards, somewhere."""

    main: bool
    """Whether this process writes what belongs to the run as a whole, as the plan and the report."""
    shows: bool
    """Whether this process shows its progress."""

    def await_plan(self, path: Path) -> None:
        """Return once the plan may be read or, by the process that writes it, written."""
        ...

    def share(self, shards: int) -> list[int]:
        """The numbers of the shards that this process must do."""
        ...

    def run(self, stage: Stage, shards: list[int], progress: Progress) -> None:
        """Do these shards; raises the first failure. What was finished stays."""
        ...

    def wait(self, stage: Stage, shards: int) -> bool:
        """Whether every shard of the stage is done, after waiting for other processes where they run at this time."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Executor(Protocol):
    """A frozen dataclass of what this way of working needs."""

    def start(self, folder: Path, threads: int) -> Workers:
        """The workers of a run.

        Args:
            folder: the run's.
            threads: of each worker's torch on the CPU; 0 is torch's own choice.

        Raises:
            ValueError: it cannot run here, as ray without the extra.
        """
        ...


@runtime_checkable
class Submitted(Protocol):
    """An executor whose shards are done by jobs that a user submits."""

    def in_job(self) -> bool:
        """Whether this process is such a job."""
        ...

    def write_jobs(self, config: Path, folder: Path) -> str:
        """Write the job files into the run's folder; returns how to submit them.

        Args:
            config: a YAML file of the whole settings.
        """
        ...


EXECUTOR = Axis(
    "executor",
    {
        "local": "diffpref.label.executors.local:Local",
        "ranks": "diffpref.label.executors.ranks:Ranks",
        "slurm": "diffpref.label.executors.slurm:Slurm",
        "ray": "diffpref.label.executors.ray:Ray",
    },
)
