"""Ctrl-C and SIGTERM: a checkpoint, one message, and a run that goes on as if nothing had happened."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from diffpref import cli
from diffpref.engine.step import Engine
from diffpref.run import checkpoint
from diffpref.run.signals import AGAIN, Stopped, StopRequest, stop_requests
from diffpref.training.command import again
from diffpref.training.config import TrainConfig
from diffpref.training.settings import to_mapping
from diffpref.training.steps import Steps
from tests.small_sdxl import read_metrics, read_weights

Run = Callable[..., Path]


def signalled(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int, number: int) -> None:
    """Send this process the signal within the call-th call of a method."""
    calls, method = 0, getattr(owner, name)

    def sending(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return method(*arguments, **more)

    monkeypatch.setattr(owner, name, sending)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_from_which_the_run_goes_on(
    settings: Callable[..., TrainConfig],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: int,
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    straight = run(output_dir=str(tmp_path / "straight"))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(to_mapping(settings())))
    with monkeypatch.context() as patch:
        signalled(patch, Engine, "step", 2, number)
        status = cli.main(["train", "--config", str(tmp_path / "run.yaml"), "--overwrite_output_dir"])
    said = capfd.readouterr().err
    assert status == 128 + number and "Traceback" not in said
    folder = tmp_path / "run"
    assert f"stopped after step 2 of 4; {folder}/checkpoint-2 holds everything" in said
    assert f" --config {tmp_path / 'run.yaml'} --resume_from_checkpoint latest\n" in said
    assert [path.name for path in checkpoint.checkpoints(folder)] == ["checkpoint-2"]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert cli.main(["train", "--config", str(tmp_path / "run.yaml"), "--resume_from_checkpoint", "latest"]) == 0
    assert f"resume: found {folder}/checkpoint-2, going on from step 2 of 4" in capfd.readouterr().out
    assert [line["loss"] for line in read_metrics(folder)] == [line["loss"] for line in read_metrics(straight)]
    first, second = read_weights(straight), read_weights(folder)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_signal_does_not_wait_for_images(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation may take minutes, and a cluster kills half a minute after it asked."""
    signalled(monkeypatch, Steps, "_sample", 2, signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped after step 2 of 4") as stop:
        run(validation_steps=2)
    assert stop.value.status == 143
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "run")] == ["checkpoint-2"]


def test_a_signal_before_the_first_step_is_one_message(
    settings: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(to_mapping(settings())))
    import diffpref.training.loop as loop

    monkeypatch.setattr(loop, "fit", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
    assert cli.main(["train", "--config", str(tmp_path / "run.yaml")]) == 143
    said = capsys.readouterr()
    assert said.err.startswith("diffpref: stopped where no step was being taken\nGo on with: ")
    assert said.out.startswith("diffpref: loading torch and diffusers\n")


def test_the_last_step_is_a_checkpoint(run: Run, tmp_path: Path) -> None:
    folder = run(max_train_steps=3, checkpointing_steps=2)
    assert [path.name for path in checkpoint.checkpoints(folder)] == ["checkpoint-2", "checkpoint-3"]


@pytest.mark.slow
def test_a_run_that_was_killed_while_it_wrote_its_result_ends(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        signalled(patch, Steps, "_sample", 2, signal.SIGINT)
        with pytest.raises(Stopped, match="after step 2 of 2"):
            run(max_train_steps=2, validation_prompts=["a dog"])
    assert not (tmp_path / "run" / "samples" / "step-2").exists()
    folder = run(max_train_steps=2, validation_prompts=["a dog"], resume_from_checkpoint="latest")
    assert (folder / "report.html").is_file() and any((folder / "samples").glob("*2*"))


def test_a_second_interrupt_leaves_at_once_unless_a_launcher_sent_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with stop_requests() as request:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.number == signal.SIGINT
        request._since -= AGAIN + 1
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="without a checkpoint"):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_was_asked_before_is_not_forgotten() -> None:
    request = StopRequest()
    request.notice(signal.SIGTERM, None)
    with pytest.raises(Stopped), request.at_once():
        raise AssertionError("nothing long may begin")


@pytest.mark.parametrize(
    ("program", "given", "expected"),
    [
        ("/bin/diffpref", "--config a.yaml", "diffpref train --config a.yaml --resume_from_checkpoint latest"),
        ("/d/__main__.py", "--rank 3", "python -m diffpref train --rank 3 --resume_from_checkpoint latest"),
        ("/d/train.py", "", "python -m diffpref.train --resume_from_checkpoint latest"),
        (
            "diffpref",
            "--overwrite-output-dir True --resume_from_checkpoint=checkpoint-3 --seed 1",
            "diffpref train --seed 1 --resume_from_checkpoint latest",
        ),
        (
            "diffpref",
            "--overwrite_output_dir --seed 1",
            "diffpref train --seed 1 --resume_from_checkpoint latest",
        ),
    ],
)
def test_the_command_that_goes_on(program: str, given: str, expected: str) -> None:
    assert again(program, given.split()) == expected


def test_under_accelerate_the_command_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert again("/d/train.py", []).startswith("accelerate launch -m diffpref.train --resume_from")
