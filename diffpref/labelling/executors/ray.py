"""Executor `ray`: an actor pool of Ray Data on a cluster with one file system.

Ray gives the scheduling, the restarts of lost actors and the autoscaling; what is done exactly once is decided by our
done-markers, so that a retried task writes the same file again or finds it there.
"""

import logging
import os
import pickle
from pathlib import Path
from typing import Any

from diffpref.labelling.config import Run
from diffpref.labelling.executors import Progress
from diffpref.labelling.executors.local import lock_folder
from diffpref.labelling.executors.worker import Worker, device_of
from diffpref.labelling.stages import Stage, all_done, pending
from diffpref.run.quiet import quiet_libraries


class _Actor:
    """One worker of the pool; a batch is the number of one shard. What a user can mend comes back as an answer: an
    exception would arrive wrapped in Ray's own."""

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
        except (ValueError, OSError) as mended:
            problem = mended
        return {"shard": [shard], "problem": [pickle.dumps(problem)]}


class RayPool:
    """A pool of actors for each stage."""

    main = shows = True

    def __init__(self, run: Run) -> None:
        try:
            import ray
            import ray.data
        except ImportError:
            raise ValueError("executor: ray needs the extra: pip install 'diffpref[ray]'.") from None
        self.run_settings = run
        run.output_dir.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(run.output_dir)
        self._ours = not ray.is_initialized()
        if self._ours:
            address = run.ray_address or os.environ.get("RAY_ADDRESS") or None
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError) as problem:
                self._lock.close()
                raise ValueError(f"the Ray cluster {address!r} cannot be reached: {problem}") from None
        self._ray = ray
        # Our own bar shows pictures; Ray's shows tasks.
        ray.data.DataContext.get_current().enable_progress_bars = False
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        resources = ray.cluster_resources()
        self._gpus = min(run.gpus_per_worker, resources.get("GPU", 0))
        most = resources.get("GPU", 0) / self._gpus if self._gpus else 1
        self.workers = run.workers or max(1, int(most))

    def await_plan(self, path: Path) -> None:
        """This process writes it."""

    def mine(self, shards: int) -> list[int]:
        return list(range(shards))

    def run(self, stage: Stage, shards: list[int], progress: Progress) -> None:
        """Do the shards on the pool; the first problem stops it, and what was finished stays."""
        ray = self._ray
        size = min(self.workers, len(shards))
        data = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        done = data.map_batches(
            _Actor,
            fn_constructor_args=(stage, self.run_settings.threads_per_worker, os.getcwd()),
            batch_size=1,
            concurrency=size,
            num_gpus=self._gpus or None,
            num_cpus=1,
        )
        for row in done.iter_rows():
            # Our own actors' answers, within the cluster.
            if problem := pickle.loads(row["problem"]):
                raise problem
            progress(stage.pictures(int(row["shard"])))

    def wait(self, stage: Stage, shards: int) -> bool:
        return all_done(stage, shards)

    def close(self) -> None:
        if self._ours:
            self._ray.shutdown()
        self._lock.close()
