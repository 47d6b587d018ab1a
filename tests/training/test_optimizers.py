"""Every optimizer goes through these: it moves weights downhill, its state survives, it says what it keeps."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch

from diffpref.settings.axis import Axis
from diffpref.training.optimizers import OPTIMIZERS, Optimizer

RATE = 1e-2
NEEDS = {"adamw_8bit": "bitsandbytes"}
OUTSIDE = """
from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True)
class Momentum:
    state_bytes: ClassVar[int] = 4
    momentum: float = 0.9

    def check(self) -> None:
        pass

    def build(self, parameters, rate):
        return torch.optim.SGD(parameters, lr=rate, momentum=self.momentum)
"""


@pytest.fixture(params=[*OPTIMIZERS, "momentum.py"])
def chosen(request: pytest.FixtureRequest, tmp_path: Path) -> Optimizer:
    """Each member of the table, and one from a file outside the package."""
    name = request.param
    if (package := NEEDS.get(name)) and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if name.endswith(".py"):
        (tmp_path / name).write_text(OUTSIDE)
        name = f"{tmp_path / name}:Momentum"
    return Axis("optimizer", OPTIMIZERS).member(name, "the test")()


def weight(rows: int = 2, columns: int = 2) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.linspace(-2, 3, rows * columns).view(rows, columns))


def losses(parameter: torch.nn.Parameter, by: torch.optim.Optimizer, count: int) -> list[float]:
    found = []
    for _ in range(count):
        loss = (parameter**2).sum()
        loss.backward()
        by.step()
        by.zero_grad()
        found.append(loss.item())
    return found


def test_it_is_an_optimizer_that_can_run(chosen: Optimizer) -> None:
    assert isinstance(chosen, Optimizer)
    chosen.check()


def test_it_goes_downhill_and_survives_its_state_dict(chosen: Optimizer) -> None:
    w = weight()
    optimizer = chosen.build([w], RATE)
    seen = losses(w, optimizer, 5)
    assert all(after < before for before, after in zip(seen, seen[1:], strict=False))
    twin = torch.nn.Parameter(w.detach().clone())
    copied = chosen.build([twin], RATE)
    # As from a file: load_state_dict alone would share the running averages with the optimizer that goes on.
    copied.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert losses(w, optimizer, 3) == losses(twin, copied, 3)


def test_it_keeps_the_bytes_that_it_says(chosen: Optimizer) -> None:
    w = weight(512, 1024)
    optimizer = chosen.build([w], RATE)
    losses(w, optimizer, 1)
    tensors = [each for each in optimizer.state[w].values() if isinstance(each, torch.Tensor)]
    kept = sum(each.numel() * each.element_size() for each in tensors)
    # Sums over rows and columns, counters and scales come beside what is kept for each weight.
    assert kept / w.numel() == pytest.approx(chosen.state_bytes, abs=0.05)


def test_groups_of_parameters_may_have_settings_of_their_own(chosen: Optimizer) -> None:
    one, other = weight(), weight()
    optimizer = chosen.build([{"params": [one]}, {"params": [other], "lr": 0.0}], RATE)
    before = other.detach().clone()
    for parameter in (one, other):
        losses(parameter, optimizer, 1)
    assert [group["lr"] for group in optimizer.param_groups] == [RATE, 0.0]
    assert torch.equal(other, before) and not torch.equal(one, before)
