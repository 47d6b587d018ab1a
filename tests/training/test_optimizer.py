"""Optimizers step, schedules take the values their names promise, and settings that cannot train are refused."""

import dataclasses
import importlib.util
import math
from typing import Any

import pytest
import torch

from diffpref.settings.bounds import check
from diffpref.training.config import Optimization
from diffpref.training.optimizers import Adafactor, AdamW, AdamW8bit
from diffpref.training.schedule import build_schedule, effective_rate

RATE = 1e-2


def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))


def test_adamw_takes_the_step_of_its_formula() -> None:
    chosen = AdamW(adam_weight_decay=0.1, adam_beta1=0.5, adam_beta2=0.9, adam_epsilon=1e-3)
    w = weight()
    before, optimizer = w.detach().clone(), chosen.build([w], RATE)
    (w**2).sum().backward()
    grad = 2 * before
    optimizer.step()
    # The first step after bias correction: m = grad, v = grad^2, and the decay acts on the weight itself.
    expected = before * (1 - RATE * 0.1) - RATE * grad / (grad.abs() + 1e-3)
    torch.testing.assert_close(w.detach(), expected, rtol=1e-6, atol=1e-7)


def test_adafactor_takes_the_given_rate_and_clips_the_update() -> None:
    w = weight()
    before = w.detach().clone()
    optimizer = Adafactor(adam_weight_decay=0.0).build([w], RATE)
    (1e4 * (w**2).sum()).backward()
    optimizer.step()
    # The update's root mean square is clipped at 1, whatever the gradient's scale; relative steps would change RATE.
    size = float((w.detach() - before).square().mean().sqrt())
    assert 0.5 * RATE < size <= RATE * (1 + 1e-4)


def rates(name: str, warmup: int, steps: int) -> list[float]:
    """The rate of each step, and the one after the last."""
    settings = Optimization(lr_scheduler=name, lr_warmup_steps=warmup, max_train_steps=steps)  # type: ignore[arg-type]
    w = weight()
    optimizer = AdamW().build([w], RATE)
    schedule = build_schedule(optimizer, settings)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return [*found, schedule.get_last_lr()[0]]


HALF = [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(9)]
LINE = [1 - i / 8 for i in range(9)]
RAMP = [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1.0] * 13),
        ("constant_with_warmup", RAMP + [1.0] * 9),
        ("linear", RAMP + LINE),
        ("cosine", RAMP + HALF),
        ("cosine_with_restarts", RAMP + HALF),
        # Ends at diffusers' lr_end, 1e-7.
        ("polynomial", RAMP + [1e-5 + (1 - 1e-5) * value for value in LINE]),
    ],
)
def test_schedules_after_four_steps_of_warm_up(name: str, expected: list[float]) -> None:
    assert rates(name, 4, 12) == pytest.approx([RATE * value for value in expected], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("name", ["constant_with_warmup", "linear", "cosine"])
def test_without_warm_up_the_first_step_has_the_full_rate(name: str) -> None:
    assert rates(name, 0, 3)[0] == RATE


def test_scale_lr_multiplies_by_the_effective_batch() -> None:
    settings = Optimization(learning_rate=1e-8, train_batch_size=1, gradient_accumulation_steps=128)
    assert effective_rate(settings, 16) == 1e-8
    # The published SDXL run: 2048 pairs a step.
    assert effective_rate(dataclasses.replace(settings, scale_lr=True), 16) == pytest.approx(2.048e-5, rel=1e-12)
    small = Optimization(learning_rate=1e-5, scale_lr=True, train_batch_size=3, gradient_accumulation_steps=2)
    assert effective_rate(small, 1) == pytest.approx(6e-5, rel=1e-12)


@pytest.mark.parametrize(
    ("record", "name", "value"),
    [
        (Optimization(), "learning_rate", 0.0),
        (Optimization(), "learning_rate", -1e-5),
        (Optimization(), "learning_rate", float("nan")),
        (Optimization(), "max_train_steps", 0),
        (Optimization(), "train_batch_size", 0),
        (Optimization(), "gradient_accumulation_steps", 0),
        (Optimization(), "max_grad_norm", 0.0),
        (Optimization(), "lr_warmup_steps", -1),
        (AdamW(), "adam_beta1", 1.0),
        (AdamW8bit(), "adam_beta2", -0.1),
        (AdamW(), "adam_weight_decay", -0.1),
        (Adafactor(), "adam_weight_decay", -0.1),
        (AdamW(), "adam_epsilon", float("nan")),
    ],
)
def test_settings_that_cannot_train_are_named(record: Any, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got {value}\."):
        check(dataclasses.replace(record, **{name: value}))


def test_adamw_8bit_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'diffpref\[bitsandbytes\]'"):
        AdamW8bit().check()
