"""Executor `local`: processes of this machine, one a GPU; a single worker works in this process."""

import multiprocessing
import os
import queue
import signal
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Lock
from pathlib import Path
from typing import Any, TextIO

import torch

from diffpref.labelling.config import Run
from diffpref.labelling.executors import Progress
from diffpref.labelling.executors.worker import Worker, device_of
from diffpref.labelling.stages import Stage, all_done
from diffpref.run.quiet import quiet_libraries

_here: Worker | None = None
"""The worker of a pool's process."""
_done: Any = None
"""The queue to which a pool's process puts the numbers of pictures it has done."""


def _start(number: Any, lock: Lock, threads: int, done: Any) -> None:
    global _here, _done
    with lock:
        mine = number.value
        number.value += 1
    quiet_libraries()
    _here, _done = Worker(device_of(mine), threads), done
    # A terminal's Ctrl-C reaches every process; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: a killed run must not leave workers that hold a GPU."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _shard(stage: Stage, shard: int) -> None:
    assert _here is not None and _done is not None, "the pool's initializer ran"
    _here(stage, shard, _done.put)


def lock_folder(folder: Path) -> TextIO:
    """An open file that keeps other runs out of the folder until it is closed or this process ends, however it ends.

    Raises:
        ValueError: another run has it.
    """
    file = (folder / ".lock").open("a")
    try:
        import fcntl
    except ImportError:  # Windows has no such locks; shards are whole there too, only work may be done twice
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ValueError(f"another run works in {folder}: wait for it, or stop it.") from None
    return file


class Local:
    """A pool of processes that lives as long as the run, so that libraries are imported once a worker."""

    main = shows = True

    def __init__(self, run: Run) -> None:
        self.run_settings = run
        self.workers = run.workers or max(1, torch.accelerator.device_count())
        run.output_dir.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(run.output_dir)
        self._worker: Worker | None = None
        self._pool: ProcessPoolExecutor | None = None

    def await_plan(self, path: Path) -> None:
        """This process writes it."""

    def mine(self, shards: int) -> list[int]:
        return list(range(shards))

    def run(self, stage: Stage, shards: list[int], progress: Progress) -> None:
        """Do the shards; the first failure stops the handing out, and what runs is finished."""
        if self.workers == 1:
            if self._worker is None:
                self._worker = Worker(device_of(0), self.run_settings.threads_per_worker)
            for shard in shards:
                self._worker(stage, shard, progress)
            return
        try:
            self._share(stage, shards, progress)
        except KeyboardInterrupt:
            # Nobody who stops a run waits for a shard of pictures.
            for worker in multiprocessing.active_children():
                worker.kill()
            raise

    def _share(self, stage: Stage, shards: list[int], progress: Progress) -> None:
        """The shards over the pool's processes, each as many at a time as there are workers."""
        pool = self._started()
        waiting, running = list(shards), dict[Future[None], int]()
        problem: BaseException | None = None
        while running or (waiting and problem is None):
            while waiting and problem is None and len(running) < self.workers:
                shard = waiting.pop(0)
                try:
                    running[pool.submit(_shard, stage, shard)] = shard
                except BrokenProcessPool as broken:
                    problem = self._explained(broken, stage, shard)
            done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            self._drain(progress)
            for future in done:
                shard = running.pop(future)
                problem = problem or self._explained(future.exception(), stage, shard)
        self._drain(progress)
        if problem is not None:
            raise problem

    @staticmethod
    def _explained(problem: BaseException | None, stage: Stage, shard: int) -> BaseException | None:
        if isinstance(problem, BrokenProcessPool):
            return ValueError(
                f"a worker died at shard {shard:05d} of {stage.name}, as it does when memory runs out: use fewer "
                "workers or smaller batches, and run again; finished shards stay."
            )
        return problem

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Not fork: CUDA and threads do not survive it.
            context = multiprocessing.get_context("spawn")
            self._done = context.Queue()
            number = context.Value("i", 0)
            arguments = (number, context.Lock(), self.run_settings.threads_per_worker, self._done)
            self._pool = ProcessPoolExecutor(self.workers, context, initializer=_start, initargs=arguments)
        return self._pool

    def _drain(self, progress: Progress) -> None:
        while True:
            try:
                progress(self._done.get_nowait())
            except queue.Empty:
                return

    def wait(self, stage: Stage, shards: int) -> bool:
        return all_done(stage, shards)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._lock.close()
