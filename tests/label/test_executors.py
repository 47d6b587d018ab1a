"""Executors: whoever does the shards, the bytes are the same; and a run that is killed goes on where it was."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from diffpref.labelling.engine import label
from diffpref.labelling.executors import EXECUTORS, slurm
from diffpref.labelling.settings import from_mapping
from tests.label.world import data_files, lines, make_world

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def quiet(line: str) -> None:
    """Nobody reads along."""


def undisturbed(folder: Path, **changes: object) -> dict[str, bytes]:
    """What one worker in this process makes of the same world."""
    keys = make_world(folder, **changes)
    return data_files(label(from_mapping({**keys, "output_dir": str(folder / "straight")}, "world"), say=quiet))


def write_config(folder: Path, **changes: object) -> Path:
    path = folder / "label-world.yaml"
    path.write_text(yaml.safe_dump(make_world(folder, **changes)))
    return path


def command(config: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "diffpref.label", "--config", str(config), *more]


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        arguments, env={**ENVIRONMENT, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ranks_share_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank draws and scores its own share, and a run of one rank afterwards finds all of it done."""
    expected = undisturbed(tmp_path)
    drawn = lines(tmp_path / "drawn.log")
    keys = {**make_world(tmp_path), "executor": "ranks"}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    label(from_mapping({**keys, "stages": ["images", "filter", "scores"]}, "world"), say=quiet)
    assert len(list((tmp_path / "out/done/images/noise").iterdir())) == 2, "shards 0 and 2 of 3"
    monkeypatch.setenv("RANK", "1")
    label(from_mapping({**keys, "stages": ["images", "filter", "scores"]}, "world"), say=quiet)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert data_files(label(from_mapping(keys, "world"), say=quiet)) == expected
    assert sorted(lines(tmp_path / "drawn.log")) == sorted(drawn * 2)


def test_ranks_without_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="executor: ranks needs a launcher: accelerate launch"):
        label(from_mapping({**make_world(tmp_path), "executor": "ranks"}, "world"), say=quiet)


def test_slurm_tasks_share_the_shards_and_a_last_job_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = undisturbed(tmp_path)
    keys = make_world(tmp_path)
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    with pytest.raises(ValueError, match="plan.json is missing: make the plan with the same command outside of a job"):
        label(from_mapping({**keys, "executor": "slurm"}, "world"), say=quiet)
    from diffpref.labelling.plan import make_plan

    make_plan(from_mapping(keys, "world"))
    said: list[str] = []
    label(from_mapping({**keys, "executor": "slurm"}, "world"), say=said.append)
    assert "--stages labels packs report" in said[-1] and not (tmp_path / "out/labels").exists()
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    label(from_mapping({**keys, "executor": "slurm", "stages": ["images", "filter", "scores"]}, "world"), say=quiet)
    last = from_mapping({**keys, "stages": ["labels", "packs", "report"]}, "world")
    assert data_files(label(last, say=quiet)) == expected


def test_labelling_before_everything_is_scored_is_refused(tmp_path: Path) -> None:
    keys = make_world(tmp_path)
    label(from_mapping({**keys, "stages": ["images"]}, "world"), say=quiet)
    with pytest.raises(
        ValueError, match="filter is not done for shard 00000: run that stage first|filter.*is not done"
    ):
        label(from_mapping({**keys, "stages": ["labels"]}, "world"), say=quiet)


def test_every_executor_exists() -> None:
    for address in EXECUTORS.values():
        module, _, name = address.rpartition(":")
        assert f"class {name}" in (ROOT / (module.replace(".", "/") + ".py")).read_text()


@pytest.mark.slow
def test_two_local_processes_give_the_same_bytes(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path)
    drawn = lines(tmp_path / "drawn.log")
    run(*command(write_config(tmp_path, workers=2, threads_per_worker=1)))
    assert data_files(tmp_path / "out") == expected
    assert sorted(lines(tmp_path / "drawn.log")) == sorted(drawn * 2)
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.slow
def test_a_worker_that_dies_is_explained_and_finished_shards_stay(tmp_path: Path) -> None:
    prompts = [f"thing {i}" for i in range(16)] + ["a deadly thing"]
    config = write_config(tmp_path, prompts=prompts, workers=2, threads_per_worker=1)
    done = subprocess.run(command(config), env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "diffpref: error: a worker died at shard" in done.stderr and "use fewer workers" in done.stderr
    assert list((tmp_path / "out/done/images/noise").glob("*.json")), "the other worker's first shard, or this one's"


@pytest.mark.slow
def test_accelerate_launch_gives_the_same_bytes(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path)
    drawn = lines(tmp_path / "drawn.log")
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "diffpref.label"]
    run(*launch, "--config", str(write_config(tmp_path)))
    assert data_files(tmp_path / "out") == expected
    assert sorted(lines(tmp_path / "drawn.log")) == sorted(drawn * 2)


@pytest.mark.slow
def test_the_slurm_scripts_run(tmp_path: Path) -> None:
    """The files that are submitted, run by bash with the variables that SLURM would set."""
    expected = undisturbed(tmp_path)
    said = run(*command(write_config(tmp_path), "--executor", "slurm", "--workers", "2"))
    assert "sbatch --dependency=afterok:$job" in said
    array = (tmp_path / "out" / slurm.ARRAY).read_text()
    assert "#SBATCH --array=0-1" in array and "#SBATCH --requeue" in array
    for task in ("0", "1"):
        place = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "1"}
        run("bash", str(tmp_path / "out" / slurm.ARRAY), **place)
    run("bash", str(tmp_path / "out" / slurm.FINISH))
    assert data_files(tmp_path / "out") == expected


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_bytes(tmp_path: Path) -> None:
    """A real cluster on this machine; a second run on it does nothing."""
    pytest.importorskip("ray")
    expected = undisturbed(tmp_path)
    drawn = lines(tmp_path / "drawn.log")
    config = write_config(tmp_path, workers=2, threads_per_worker=1)
    run(*command(config, "--executor", "ray"))
    assert data_files(tmp_path / "out") == expected
    assert sorted(lines(tmp_path / "drawn.log")) == sorted(drawn * 2)
    run(*command(config, "--executor", "ray"))
    assert sorted(lines(tmp_path / "drawn.log")) == sorted(drawn * 2)


@pytest.mark.slow
def test_an_error_in_a_ray_actor_is_the_users_message(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    config = write_config(tmp_path, prompts=[f"will explode {i}" for i in range(4)])
    done = subprocess.run(
        command(config, "--executor", "ray"), env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "diffpref: error: images/noise/00000: 4 of a shard's 8 pictures failed" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_killed_at_random_moments(tmp_path: Path, executor: str) -> None:
    """kill -9, 20 times (local; a few times with ray): the packed set is that of an undisturbed run, and no picture is
    drawn twice but in a shard that was cut."""
    if executor == "ray":
        pytest.importorskip("ray")
    kills, seed = (20, 0) if executor == "local" else (3, 1)
    prompts = [f"thing {i}" for i in range(120)]
    expected = undisturbed(tmp_path, prompts=prompts, shard_size=5)
    drawn_log, scored_log, out = tmp_path / "drawn.log", tmp_path / "scored.log", tmp_path / "out"
    for log in (drawn_log, scored_log):
        log.unlink()
    config = write_config(tmp_path, prompts=prompts, shard_size=5, workers=2, threads_per_worker=1, executor=executor)
    shard_of, rng = {prompt: place // 5 for place, prompt in enumerate(prompts)}, random.Random(seed)
    cut: list[tuple[int, set[int]]] = []
    for number in range(kills):
        slow = {**ENVIRONMENT, "WORLD_SLEEP": "0.08"}
        process = subprocess.Popen(command(config), env=slow, cwd=ROOT, stdout=-3, stderr=-3, start_new_session=True)
        before, limit = len(lines(drawn_log) + lines(scored_log)), time.monotonic() + 90
        # Two of three kills fall while pictures are drawn or scored, the others anywhere from the interpreter's start.
        while number % 3 and len(lines(drawn_log) + lines(scored_log)) == before and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.5 if number % 3 else 8))
        assert process.poll() is None, "the work must outlast the kills"
        # The parent alone, as a user's kill -9 does, or the whole group, as a node's end does.
        os.kill(process.pid, signal.SIGKILL) if number % 4 == 1 else os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # Workers notice within a second that their parent is gone.
        time.sleep(1.5)
        done = {int(path.stem) for path in (out / "done/images/noise").glob("*.json")}
        cut.append((len(lines(drawn_log)), done))
    run(*command(config))
    assert data_files(out) == expected
    drawn = lines(drawn_log)
    for position, done in cut:
        again = {shard_of[line.split("|")[0]] for line in drawn[position:]}
        assert not again & done, "a finished shard was drawn again"
    assert not list(out.rglob("*.tmp"))
    assert executor == "ray" or len(drawn) > 240, "at least one kill fell into a shard"
