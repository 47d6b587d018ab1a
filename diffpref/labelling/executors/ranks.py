"""Executor `ranks`: the processes of accelerate launch or torchrun, on one machine or many with one file system.

Shard s belongs to rank s mod the world's size. The ranks meet through the done-markers alone: no process group, and so
no collective that times out while one rank draws pictures for an hour.
"""

import os
import time
from pathlib import Path

from diffpref.labelling.config import Run
from diffpref.labelling.executors import Progress
from diffpref.labelling.executors.worker import Worker, device_of
from diffpref.labelling.stages import Stage, pending

POLL = 1.0
"""Seconds between two looks at the markers of other ranks."""


def place(run: Run) -> tuple[int, int, int]:
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


class Ranks:
    """This process's share of the shards."""

    def __init__(self, run: Run) -> None:
        self.rank, self.world, local = place(run)
        self.main = self.shows = self.rank == 0
        self._worker = Worker(device_of(local), run.threads_per_worker)

    def await_plan(self, path: Path) -> None:
        while not self.main and not path.is_file():
            time.sleep(POLL)

    def mine(self, shards: int) -> list[int]:
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
