"""The loop: exact at step 0, it learns, and the same batch gives the same weights however it is cut."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import read_metrics, read_weights

Run = Callable[..., Path]
LOG_2 = math.log(2)
both = pytest.mark.parametrize("adapter", ["lora", "full"])


@both
@pytest.mark.parametrize("checkpointing", [False, True])
def test_policy_equals_reference_at_step_0(run: Run, adapter: str, checkpointing: bool) -> None:
    first = read_metrics(run(adapter=adapter, max_train_steps=1, gradient_checkpointing=checkpointing))[0]
    assert first["loss"] == pytest.approx(LOG_2, abs=1e-7)  # float32
    assert first["rewards/accuracies"] == 0.5
    assert first["rewards/margins"] == first["rewards/chosen"] == first["rewards/rejected"] == 0.0
    assert first["error/chosen/ratio"] == first["error/rejected/ratio"] == 1.0


@both
def test_it_learns(run: Run, adapter: str) -> None:
    rate = {"lora": 1e-2, "full": 1e-3}[adapter]
    metrics = read_metrics(run(adapter=adapter, max_train_steps=30, learning_rate=rate, train_batch_size=4, rank=8))
    last = metrics[-5:]
    assert sum(m["rewards/margins"] for m in last) / 5 > 0.5
    assert sum(m["rewards/accuracies"] for m in last) / 5 > 0.9
    assert last[-1]["loss"] < LOG_2
