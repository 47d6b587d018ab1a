"""Executor `slurm`: an array job whose tasks draw and score, and one job after it that labels and packs.

Outside a job it writes `label.sbatch` and `finish.sbatch` beside the plan and says how to submit them; within an array
task it does the task's share. The tasks need not run at the same time, so that none waits for another: a task stops
after the scores.
"""

import os
import shlex
import sys
from pathlib import Path

from diffpref.files import atomic
from diffpref.labelling.config import Run
from diffpref.labelling.executors import Progress
from diffpref.labelling.executors.worker import Worker, device_of
from diffpref.labelling.stages import Stage, all_done

ARRAY, FINISH = "label.sbatch", "finish.sbatch"


def in_task() -> bool:
    """Whether this process is a task of a SLURM array."""
    return "SLURM_ARRAY_TASK_ID" in os.environ


def write_jobs(config: Path, run: Run) -> str:
    """Write both job files into the run's folder; returns how to submit them.

    Args:
        config: a YAML file of the whole settings.
    """
    tasks = run.workers or 8
    command = [sys.executable, "-m", "diffpref.label", "--config", str(config.absolute())]
    here = shlex.quote(os.getcwd())
    log = shlex.quote(str(run.output_dir.absolute() / "slurm-%A-%a.log"))
    head = "#!/bin/bash\n#SBATCH --job-name=diffpref-label\n"
    array = (
        f"{head}#SBATCH --array=0-{tasks - 1}\n#SBATCH --gres=gpu:1\n#SBATCH --requeue\n#SBATCH --output={log}\n"
        f"# Add your site's partition, account and time; a task that is cut off goes on where it was.\n"
        f"cd {here}\nexec {shlex.join([*command, '--executor', 'slurm'])}\n"
    )
    finish = (
        f"{head}#SBATCH --output={log.replace('%A-%a', '%j')}\n"
        f"cd {here}\nexec {shlex.join([*command, '--executor', 'local', '--stages', 'labels', 'packs', 'report'])}\n"
    )
    folder = run.output_dir
    atomic.write_text(folder / ARRAY, array)
    atomic.write_text(folder / FINISH, finish)
    return (
        f"written: {folder / ARRAY} ({tasks} tasks of one GPU; --workers changes it) and {folder / FINISH}. Submit:\n"
        f"  job=$(sbatch --parsable {shlex.quote(str(folder / ARRAY))})\n"
        f"  sbatch --dependency=afterok:$job {shlex.quote(str(folder / FINISH))}"
    )


class SlurmArray:
    """One task's share of the shards."""

    main, shows = False, True

    def __init__(self, run: Run) -> None:
        try:
            first = int(os.environ["SLURM_ARRAY_TASK_MIN"])
            self.task = int(os.environ["SLURM_ARRAY_TASK_ID"]) - first
            self.tasks = int(os.environ["SLURM_ARRAY_TASK_MAX"]) - first + 1
        except (KeyError, ValueError):
            raise ValueError(
                "executor: slurm works in a SLURM array job; SLURM_ARRAY_TASK_ID, _MIN and _MAX are missing here."
            ) from None
        self._worker = Worker(device_of(0), run.threads_per_worker)

    def await_plan(self, path: Path) -> None:
        """Raise ValueError where it is missing: tasks that start together must not all write it."""
        if not path.is_file():
            raise ValueError(f"{path} is missing: make the plan with the same command outside of a job first.")

    def mine(self, shards: int) -> list[int]:
        return list(range(self.task, shards, self.tasks))

    def run(self, stage: Stage, shards: list[int], progress: Progress) -> None:
        for shard in shards:
            self._worker(stage, shard, progress)

    def wait(self, stage: Stage, shards: int) -> bool:
        """Whether the other tasks happen to be done as well."""
        return all_done(stage, shards)

    def close(self) -> None:
        self._worker.close()
