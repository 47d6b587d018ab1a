"""Executor `ray`: an actor pool of Ray Data on a cluster with one file system.

Ray gives the scheduling, the restarts of lost actors and the autoscaling; what is done exactly once is decided by our
done-markers, so that a retried task writes the same file again or finds it there.
"""

import logging
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from diffpref.label.executors import Progress, Workers
from diffpref.label.executors.local import lock_folder
from diffpref.label.executors.worker import Worker, device_of
from diffpref.label.stages import Stage, all_done, pending
from diffpref.run.quiet import quiet_libraries


class _Actor:
    """One worker of the pool; a batch is the number of one shard. User errors come back as answers: an exception would
    arrive wrapped in Ray's own."""

    def __init__(self, stage: Stage, threads: int, folder: str) -> None:
        # An actor starts in a folder of Ray's, where relative paths of the settings lead nowhere.
        if os.path.isdir(folder):
            os.chdir(folder)
        quiet_libraries()
        # Ray shows an actor its own GPUs alone.
        self.stage, self.worker = stage, Worker(device_of(0), threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (shard,) = batch["shard"].tolist()
        problem: Exception | None = None
        try:
            # Ray may repeat a task whose node was lost after the marker was written.
            if pending(self.stage, shard):
                self.worker(self.stage, shard, lambda count: None)
        except (ValueError, OSError) as raised:
            problem = raised
        return {"shard": [shard], "problem": [pickle.dumps(problem)]}


@dataclass(frozen=True)
class Ray:
    """An actor pool of Ray Data."""

    workers: Annotated[int, Ge(0)] = 0
    """Actors at once; 0 is one for each share of a GPU that the cluster has, or one without a GPU."""
    ray_address: str = ""
    """The cluster's address; by default RAY_ADDRESS, else a cluster on this machine."""
    gpus_per_worker: Annotated[float, Ge(0)] = 1.0
    """Share of a GPU that each actor asks for, where the cluster has GPUs."""

    def start(self, folder: Path, threads: int) -> Workers:
        return Actors(folder, self, threads)


class Actors:
    """A pool of actors for each stage.

    Args:
        threads: of each actor's torch on the CPU; 0 is torch's own choice.
    """

    main = shows = True

    def __init__(self, folder: Path, settings: Ray, threads: int) -> None:
        try:
            import ray
            import ray.data
        except ImportError:
            raise ValueError("executor: ray needs the extra: pip install 'diffpref[ray]'.") from None
        self.threads = threads
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(folder)
        self._ours = not ray.is_initialized()
        if self._ours:
            address = settings.ray_address or os.environ.get("RAY_ADDRESS") or None
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError) as problem:
                self._lock.close()
                raise ValueError(f"the Ray cluster {address!r} cannot be reached: {problem}") from None
        self._ray = ray
        # Our own bar shows images; Ray's shows tasks.
        ray.data.DataContext.get_current().enable_progress_bars = False
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        resources = ray.cluster_resources()
        self._gpus = min(settings.gpus_per_worker, resources.get("GPU", 0))
        most = resources.get("GPU", 0) / self._gpus if self._gpus else 1
        self.workers = settings.workers or max(1, int(most))

    def await_plan(self, path: Path) -> None:
        """This process writes it."""

    def share(self, shards: int) -> list[int]:
        return list(range(shards))

    def run(self, stage: Stage, shards: list[int], progress: Progress) -> None:
        """Do the shards on the pool; the first problem stops it, and what was finished stays."""
        ray = self._ray
        size = min(self.workers, len(shards))
        data = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        done = data.map_batches(
            _Actor,
            fn_constructor_args=(stage, self.threads, os.getcwd()),
            batch_size=1,
            concurrency=size,
            num_gpus=self._gpus or None,
            num_cpus=1,
        )
        for row in done.iter_rows():
            # Our own actors' answers, within the cluster.
            if problem := pickle.loads(row["problem"]):
                raise problem
            progress(stage.images(int(row["shard"])))

    def wait(self, stage: Stage, shards: int) -> bool:
        return all_done(stage, shards)

    def close(self) -> None:
        if self._ours:
            self._ray.shutdown()
        self._lock.close()
