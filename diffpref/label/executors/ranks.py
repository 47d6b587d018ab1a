"""Executor `ranks`: the processes of accelerate launch or torchrun, on one machine or many with one file system.

Shard s belongs to rank s mod the world's size. The ranks meet through the done-markers alone: no process group, and so
no collective that times out while one rank draws images for an hour.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from diffpref.label.executors import Progress, Workers
from diffpref.label.executors.worker import Worker, device_of
from diffpref.label.stages import Stage, pending

POLL = 1.0
"""Seconds between two looks at the markers of other ranks."""


def launched() -> bool:
    """Whether a launcher started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def place() -> tuple[int, int, int]:
    """(rank, world size, rank on this machine) as the launcher says in the environment; accelerate says nothing where
    it starts one process.

    Raises:
        ValueError: no launcher started this process.
    """
    if "RANK" not in os.environ and any(name.startswith("ACCELERATE_") for name in os.environ):
        return 0, 1, 0
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        raise ValueError(
            "executor: ranks needs a launcher: accelerate launch -m diffpref.label --config FILE --executor ranks "
            "(or torchrun); without one use executor: local."
        ) from None
    return rank, world, int(os.environ.get("LOCAL_RANK", rank))


@dataclass(frozen=True)
class Ranks:
    """The processes of a launcher; the launcher says how many."""

    def start(self, folder: Path, threads: int) -> Workers:
        return Rank(threads)


class Rank:
    """This process's share of the shards.

    Args:
        threads: of its torch on the CPU; 0 is torch's own choice.
    """

    def __init__(self, threads: int) -> None:
        self.rank, self.world, local = place()
        self.main = self.shows = self.rank == 0
        self._worker = Worker(device_of(local), threads)

    def await_plan(self, path: Path) -> None:
        while not self.main and not path.is_file():
            time.sleep(POLL)

    def share(self, shards: int) -> list[int]:
        return list(range(self.rank, shards, self.world))

    def run(self, stage: Stage, shards: list[int], progress: Progress) -> None:
        for shard in shards:
            self._worker(stage, shard, progress)

    def wait(self, stage: Stage, shards: int) -> bool:
        """True once every rank has done its shards; a rank that fails is the launcher's to notice, which ends all."""
        left = list(range(shards))
        while left := [shard for shard in left if pending(stage, shard)]:
            time.sleep(POLL)
        return True

    def close(self) -> None:
        self._worker.close()
