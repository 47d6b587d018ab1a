"""What a stage is: shards that any worker can do in any order, each from files alone.

A stage is a frozen dataclass, so that it travels to a process or an actor as it is. `settings` and `inputs` say what a
finished shard's marker must hold; `open` loads what is heavy, once a worker; the function that it returns does a shard.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import torch

from diffpref.labelling.plan import Plan
from diffpref.labelling.shards import Marker, Shard

Report: TypeAlias = Callable[[int], None]
"""Called with the number of pictures that were just done."""


@dataclass(frozen=True)
class Made:
    """What a worker leaves of a shard: complete data files, and what their marker says of them."""

    suffixes: tuple[str, ...]
    """Of the data files, like ".parquet"."""
    counts: Mapping[str, int]
    """Rows by status."""
    about: Mapping[str, object] = field(default_factory=dict)
    """Versions, provenance: nothing that the data depends on."""


Work: TypeAlias = Callable[[int, Report], Made]
"""Writes the data files of one shard."""


@runtime_checkable
class Stage(Protocol):
    """One step of the run."""

    @property
    def plan(self) -> Plan: ...

    @property
    def name(self) -> str:
        """Also its folder, like "images/sdxl"."""
        ...

    @property
    def keep(self) -> bool:
        """Whether a shard that was made with other settings is an error, because it is expensive to make again."""
        ...

    @property
    def settings(self) -> str:
        """A digest of what the user set for this stage."""
        ...

    def pictures(self, shard: int) -> int:
        """How many pictures a shard has, for the progress bar."""
        ...

    def inputs(self, shard: int) -> str:
        """A digest of the files that the shard is made from; raises ValueError where an earlier stage is not done."""
        ...

    def open(self, device: torch.device) -> Work: ...


def shard_of(stage: Stage, number: int) -> Shard:
    """The files of one shard of the stage."""
    return Shard(stage.plan.root, stage.name, number)


def pending(stage: Stage, number: int) -> bool:
    """Whether the shard is still to do.

    Raises:
        ValueError: it was done with other settings and is expensive to recompute; or its files were changed.
    """
    marker = kept_marker(stage, number)
    return marker is None or marker.settings != stage.settings or marker.inputs != stage.inputs(number)


def kept_marker(stage: Stage, number: int) -> Marker | None:
    """The shard's marker, or None where it is not done.

    Raises:
        ValueError: it was done with other settings and is expensive to recompute; or its files were changed.
    """
    shard = shard_of(stage, number)
    marker = shard.marker()
    if marker is not None and stage.keep and marker.settings != stage.settings:
        kind, _, name = stage.name.partition("/")
        raise ValueError(
            f"{shard.marker_path}: the {kind} of {name!r} were made with other settings. Give the changed one another "
            f"name; or delete {shard.marker_path.parent}, and all of them are made again."
        )
    return marker


def all_done(stage: Stage, shards: int) -> bool:
    """Whether no shard of the stage is left to do."""
    return not any(pending(stage, shard) for shard in range(shards))


def do_shard(stage: Stage, work: Work, number: int, report: Report) -> None:
    """Do one shard, and write its marker with the seconds that it took."""
    shard, start = shard_of(stage, number), time.monotonic()
    shard.sweep()
    made = work(number, report)
    about = {"seconds": round(time.monotonic() - start, 3), **made.about}
    inputs = stage.inputs(number)
    shard.finish(made.suffixes, settings=stage.settings, inputs=inputs, counts=made.counts, about=about)


def count(rows: Sequence[Mapping[str, object]]) -> dict[str, int]:
    """Rows by status."""
    return dict(Counter(str(row["status"]) for row in rows))


class Failures:
    """Counts what failed in a shard, and stops the run where it is no longer an exception."""

    def __init__(self, stage: str, planned: int, share: float) -> None:
        self.stage, self.allowed, self.planned, self.count = stage, max(3, int(share * planned)), planned, 0

    def add(self, what: str, message: str) -> None:
        """Raise ValueError where more failed than the settings allow."""
        self.count += 1
        if self.count > self.allowed:
            raise ValueError(
                f"{self.stage}: {self.count} of a shard's {self.planned} pictures failed, the last ({what}) with: "
                f"{message:.300}. Mend the cause and run again (finished shards stay), or allow more with "
                "--max_failure_share."
            )


def one_line(problem: Exception) -> str:
    """The exception in one line."""
    return f"{type(problem).__name__}: {problem}".replace("\n", " ")[:500]
