"""A mode from a user's file: `loss_mode: my_file.py:Name`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_runs import SHARED, agree
from tests.small_sdxl import read_metrics

Run = Callable[..., Path]
MINE = """
from dataclasses import dataclass
from typing import ClassVar

import torch

from diffpref.engine.modes.base import graph_bytes
from diffpref.engine.modes.joint import joint_loss
from diffpref.engine.runner import detached
from diffpref.engine.scalars import Outcome


@dataclass(frozen=True)
class Window:
    "All batches whose reference is known at once in one graph."

    weight: float = 1.0
    "Of the loss."
    cuts: ClassVar[bool] = True
    extra_forwards: ClassVar[int] = 0

    def sizes(self, work):
        return [work.groups * work.k]

    def repeats(self, work):
        return False

    def scratches(self, k, micro_batch):
        return 0

    def need(self, work, micro_batch, *, checkpointing):
        return graph_bytes(work, micro_batch, checkpointing=checkpointing)

    def describe(self, micro_batch):
        return "a window"

    def without_graph(self, cut):
        return 2 * cut.micro_batch

    def forwards(self, block, cut):
        return [range(len(block.rows))]

    def gradient(self, runner, block, references, cut, *, accumulation, last):
        with runner.autocast():
            places = range(len(block.parts))
            found = [joint_loss(runner.model, runner.objective, block, place, references) for place in places]
            runner.backward(self.weight * sum(loss.mean() for _, loss in found) / accumulation)
        none = [torch.zeros(len(loss)) for _, loss in found]
        return Outcome([detached(errors) for errors, _ in found], [loss.detach() for _, loss in found], none)


@dataclass(frozen=True)
class Half:
    "Lacks most of what a mode is."

    cuts: ClassVar[bool] = False

    def sizes(self, work):
        return [1]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "my_modes.py").write_text(MINE)
    return tmp_path / "my_modes.py"


def test_it_trains_as_joint_does_and_is_continued(run: Run, tmp_path: Path, file: Path) -> None:
    joint = run(output_dir=str(tmp_path / "joint"), loss_mode="joint", **SHARED)
    mine: dict[str, Any] = {**SHARED, "output_dir": str(tmp_path / "mine"), "loss_mode": f"{file}:Window"}
    run(**{**mine, "max_train_steps": 2, "checkpointing_steps": 2})
    plan = json.loads((tmp_path / "mine" / "checkpoint-2" / "run.json").read_text())["plan"]
    assert plan["mode"] == "Window" and plan["fits"]
    run(**{**mine, "resume_from_checkpoint": "latest"})
    agree(tmp_path / "mine", joint)
    assert {line["loss_mode"] for line in read_metrics(tmp_path / "mine")} == {"Window"}


def test_its_fields_are_keys(settings: Callable[..., Any], file: Path) -> None:
    assert settings(loss_mode=f"{file}:Window", weight=0.5).mode.weight == 0.5
    with pytest.raises(ValueError, match="unknown key 'weight'"):
        settings(loss_mode="joint", weight=0.5)


def test_what_it_lacks_is_named(settings: Callable[..., Any], file: Path) -> None:
    with pytest.raises(ValueError, match="loss_mode .*:Half lacks describe, extra_forwards, forwards, gradient, need"):
        settings(loss_mode=f"{file}:Half")
