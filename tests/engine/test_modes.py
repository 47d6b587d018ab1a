"""The three modes give one gradient: that of autograd through the whole batch."""

import pytest
import torch

from diffpref.engine.modes import Deferred, Joint, TwoPass
from diffpref.engine.rows import Block, Part
from diffpref.engine.scalars import Outcome
from diffpref.errors import compare
from tests.engine.world import CASES, SIZED, World, outcome, references, world

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Relative, of the whole gradient: sums in another order."""


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert expected.norm() > 0
    return float((found - expected).norm() / expected.norm())


def autograd(w: World, objective, parts: list[Part]) -> None:
    """The gradient through nothing of the engine: both models at each probe, the mean of the losses."""
    for one in parts:
        (objective(compare(w.policy, w.reference, one.probe), one.scores).mean() / len(parts)).backward()


def same(one: Outcome, other: Outcome, tolerance: float) -> None:
    for a, b in zip(one.errors, other.errors, strict=True):
        torch.testing.assert_close(a.policy, b.policy, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(a.log_ratio, b.log_ratio, rtol=10 * tolerance, atol=10 * tolerance)
    for a, b in zip(one.losses, other.losses, strict=True):
        torch.testing.assert_close(a, b, rtol=100 * tolerance, atol=100 * tolerance)


def check_modes(w: World, name: str, k: int) -> None:
    case = CASES[name]
    parts = case.parts(w, k)
    block = Block(parts)
    known, runner, outcomes = references(w, block), w.runner(case.objective), []
    expected = w.gradient(lambda: autograd(w, case.objective, parts))
    modes = [lambda: outcome(Joint(), runner, block, known)]
    # One candidate, a part of a group, and two groups in one graph.
    for micro in (1, k - 1) if k > 2 else (1, 4):
        modes.append(lambda m=micro: outcome(Deferred(), runner, block, known, micro_batch=m))
    modes.append(lambda: outcome(TwoPass(), runner, block, known, micro_batch=3, reference_batch=5))
    for mode in modes:
        found = w.gradient(lambda mode=mode: outcomes.append(mode()))
        assert relative(found, expected) < TOLERANCE[w.dtype]
        same(outcomes[-1], outcomes[0], TOLERANCE[w.dtype])


@pytest.mark.parametrize(("name", "k"), SIZED)
def test_every_mode_gives_autograds_gradient(name: str, k: int) -> None:
    check_modes(world("sdxl"), name, k)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "k"), [("dpo anchor sft", 2), ("rankdpo", 3), ("d3po", 2)])
def test_on_sd3_and_under_checkpointing(name: str, k: int, checkpointing: bool) -> None:
    check_modes(world("sd3", checkpointing=checkpointing), name, k)


@pytest.mark.parametrize(("family", "name", "k"), [("sdxl", "rankdpo", 3), ("sdxl", "smpo", 2), ("sd3", "ddo", 3)])
def test_in_float32(family: str, name: str, k: int) -> None:
    check_modes(world(family, torch.float32, checkpointing=family == "sdxl"), name, k)
