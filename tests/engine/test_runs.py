"""Whole runs in every mode: the same curve, resumed bit for bit, with a reference that is kept or streamed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from diffpref.training.settings import to_mapping
from tests.small_sdxl import read_metrics, read_weights
from tests.training.test_resume import assert_same, killed_after

Run = Callable[..., Path]
ROOT = Path(__file__).parents[2]
MODES: dict[str, dict[str, Any]] = {
    "deferred 1": {"loss_mode": "deferred", "micro_batch": 1},
    "deferred 2": {"loss_mode": "deferred", "micro_batch": 2},
    "two-pass": {"loss_mode": "two-pass", "micro_batch": 1},
}
SHARED: dict[str, Any] = {
    "learning_rate": 1e-4,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_train_steps": 3,
    # Adam divides a gradient by itself, which would turn rounding of tiny ones into whole steps.
    "adam_epsilon": 1e-4,
    # An error near 1 is rounded by 1e-7 where a batch is cut otherwise, and a margin by beta times that.
    "beta": 20.0,
}
WORDS = {"loss_mode", "seconds_per_step", "peak_memory_gib"}
MAGNIFIED = {"drop"}
"""Metrics that are divided by a move as small as 0.001, and their rounding with them."""
SIGNS = ("accurac", "discrimination")
"""Metrics that count signs, which rounding decides where policy and reference are equal."""


def agree(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    """The same curve and weights, to float32's sums in another order."""
    for now, then in zip(read_metrics(one), read_metrics(other), strict=True):
        untrained = then["step"] == 1
        for name in then.keys() - WORDS:
            if untrained and any(sign in name for sign in SIGNS):
                continue
            rel, scale = 1e-3 if name == "grad_norm" else 0, 100 if name in MAGNIFIED else 1
            assert now[name] == pytest.approx(then[name], rel=rel, abs=scale * tolerance), name
    for name, tensor in read_weights(other).items():
        torch.testing.assert_close(read_weights(one)[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_run_is_the_same_in_every_mode(run: Run, tmp_path: Path, adapter: str) -> None:
    joint = run(output_dir=str(tmp_path / "joint"), adapter=adapter, loss_mode="joint", **SHARED)
    for name, mode in MODES.items():
        other = run(output_dir=str(tmp_path / name), adapter=adapter, **SHARED, **mode)
        agree(other, joint)
        assert read_metrics(other)[0]["loss_mode"] == mode["loss_mode"]


def test_weights_that_were_cast_without_a_graph_get_their_gradient(run: Run, tmp_path: Path) -> None:
    """Autocast keeps its bfloat16 weights; those of a pass without a graph must not serve the pass with one."""
    shared = {**SHARED, "mixed_precision": "bf16", "max_train_steps": 1}
    norms = [
        read_metrics(run(output_dir=str(tmp_path / name), **shared, **mode))[0]["grad_norm"]
        for name, mode in (("joint", {"loss_mode": "joint"}), ("two-pass", MODES["two-pass"]))
    ]
    assert norms[1] == pytest.approx(norms[0], rel=0.05) and norms[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["deferred 1", "two-pass"])
def test_a_killed_run_continues_bit_for_bit_in_every_mode(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    shared = {**SHARED, **MODES[mode], "max_train_steps": 4, "checkpointing_steps": 2, "use_ema": True}
    straight = run(output_dir=str(tmp_path / "straight"), **shared)
    resumed = tmp_path / "resumed"
    killed_after(monkeypatch, 2, run, output_dir=str(resumed), **shared)
    run(output_dir=str(resumed), resume_from_checkpoint="latest", **shared)
    assert_same(straight, resumed)


def test_a_streamed_reference_is_the_resident_one(run: Run, tmp_path: Path) -> None:
    shared = {**SHARED, "adapter": "full", "loss_mode": "joint", "gradient_accumulation_steps": 1}
    resident = run(output_dir=str(tmp_path / "resident"), **shared)
    streamed = run(output_dir=str(tmp_path / "streamed"), reference_memory="streamed", **shared)
    for name, tensor in read_weights(resident).items():
        assert torch.equal(tensor, read_weights(streamed)[name]), name
    assert read_metrics(streamed)[0]["rewards/margins"] == 0.0


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["deferred 1", "two-pass"])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_two_processes_equal_one(
    run: Run, settings: Callable[..., Any], tmp_path: Path, adapter: str, mode: str
) -> None:
    changes = {**SHARED, "adapter": adapter, "cache_dir": None}
    one = run(output_dir=str(tmp_path / "one"), **{**changes, "train_batch_size": 4, "loss_mode": "joint"})
    two = to_mapping(settings(output_dir=str(tmp_path / "two"), **changes, **MODES[mode]))
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(two))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "PYTHONPATH": str(ROOT)}
    command = [*LAUNCH, "-m", "diffpref.train", "--config", str(tmp_path / "two.yaml")]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    agree(tmp_path / "two", one)
