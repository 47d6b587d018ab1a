"""Executor `slurm`: an array job whose tasks draw and score, and one job after it that labels and packs.

Outside a job it writes `label.sbatch` and `finish.sbatch` next to the plan and says how to submit them; within an array
task it does the task's share. The tasks need not run at the same time, so that none waits for another: a task stops
after the scores.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from diffpref.files import atomic
from diffpref.label.executors import Progress, Workers
from diffpref.label.executors.worker import Worker, device_of
from diffpref.label.stages import Stage, all_done

ARRAY, FINISH = "label.sbatch", "finish.sbatch"


@dataclass(frozen=True)
class Slurm:
    """A SLURM array, whose tasks need not run at the same time."""

    workers: Annotated[int, Ge(0)] = 0
    """Tasks of the array, one GPU each; 0 is 8."""

    def start(self, folder: Path, threads: int) -> Workers:
        return Task(threads)

    def in_job(self) -> bool:
        """Whether this process is a task of a SLURM array."""
        return "SLURM_ARRAY_TASK_ID" in os.environ

    def write_jobs(self, config: Path, folder: Path) -> str:
        tasks = self.workers or 8
        command = [sys.executable, "-m", "diffpref.label", "--config", str(config.absolute())]
        here = shlex.quote(os.getcwd())
        log = shlex.quote(str(folder.absolute() / "slurm-%A-%a.log"))
        head = "#!/bin/bash\n#SBATCH --job-name=diffpref-label\n"
        array = (
            f"{head}#SBATCH --array=0-{tasks - 1}\n#SBATCH --gres=gpu:1\n#SBATCH --requeue\n#SBATCH --output={log}\n"
            f"# Add your site's partition, account and time; a task that is cut off goes on where it was.\n"
            f"cd {here}\nexec {shlex.join([*command, '--executor', 'slurm'])}\n"
        )
        last = shlex.join([*command, "--executor", "local", "--stages", "labels", "packs", "report"])
        finish = f"{head}#SBATCH --output={log.replace('%A-%a', '%j')}\ncd {here}\nexec {last}\n"
        atomic.write_text(folder / ARRAY, array)
        atomic.write_text(folder / FINISH, finish)
        return (
            f"written: {folder / ARRAY} ({tasks} tasks of one GPU; --workers changes it) and {folder / FINISH}. "
            "Submit:\n"
            f"  job=$(sbatch --parsable {shlex.quote(str(folder / ARRAY))})\n"
            f"  sbatch --dependency=afterok:$job {shlex.quote(str(folder / FINISH))}"
        )


class Task:
    """One task's share of the shards.

    Args:
        threads: of its torch on the CPU; 0 is torch's own choice.
    """

    main, shows = False, True

    def __init__(self, threads: int) -> None:
        try:
            first = int(os.environ["SLURM_ARRAY_TASK_MIN"])
            self.task = int(os.environ["SLURM_ARRAY_TASK_ID"]) - first
            self.tasks = int(os.environ["SLURM_ARRAY_TASK_MAX"]) - first + 1
        except (KeyError, ValueError):
            raise ValueError(
                "executor: slurm works in a SLURM array job; SLURM_ARRAY_TASK_ID, _MIN and _MAX are missing here."
            ) from None
        self._worker = Worker(device_of(0), threads)

    def await_plan(self, path: Path) -> None:
        """Raise ValueError where it is missing: tasks that start together must not all write it."""
        if not path.is_file():
            raise ValueError(f"{path} is missing: make the plan with the same command outside of a job first.")

    def share(self, shards: int) -> list[int]:
        return list(range(self.task, shards, self.tasks))

    def run(self, stage: Stage, shards: list[int], progress: Progress) -> None:
        for shard in shards:
            self._worker(stage, shard, progress)

    def wait(self, stage: Stage, shards: int) -> bool:
        """Whether the other tasks happen to be done as well."""
        return all_done(stage, shards)

    def close(self) -> None:
        self._worker.close()
