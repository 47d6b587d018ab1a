"""What micro-batches may cut: skipped candidates, groups that belong together, pictures in several pairs."""

from dataclasses import dataclass, replace

import pytest
import torch

from diffpref.engine.head import coefficients, separable
from diffpref.engine.modes import Deferred, TwoPass
from diffpref.engine.rows import Block, Part
from diffpref.objectives import D3PO, DPO, RankDPO
from diffpref.types import Errors, Loss
from tests.engine.test_modes import autograd, relative
from tests.engine.world import CASES, World, joint, outcome, part, references, world

CLIPPED = D3PO(beta=0.1, clip=0.1, clip_style="clamp")


def test_zero_coefficients_are_skipped_and_counted() -> None:
    """A ratio outside D3PO's clip has no gradient; the rest of the gradient is what it was."""
    w = world("sdxl")
    # Scores that tie in the first batch's second group.
    parts = [part(w, 3, 2, seed, steps=True, scores=torch.tensor([[1.0, 0], [1, 1], [0, 1]])) for seed in range(2)]
    block = Block(parts)
    known, runner = references(w, block), w.runner(CLIPPED)
    expected = w.gradient(lambda: autograd(w, CLIPPED, parts))
    outcomes, forwards = [], []
    count_rows(w, forwards)
    found = w.gradient(lambda: outcomes.append(outcome(TwoPass(), runner, block, known, reference_batch=12)))
    assert relative(found, expected) < 1e-12
    zero = []
    for one, errors in zip(parts, outcomes[0].errors, strict=True):
        outside = errors.log_ratio.abs() > torch.log1p(torch.tensor(0.1))
        zero.append(outside | (one.scores[:, :1] == one.scores[:, 1:]))
    for skipped, none in zip(outcomes[0].skipped, zero, strict=True):
        torch.testing.assert_close(skipped, none.float().mean(1))
    left = sum(int((~none).sum()) for none in zero)
    assert 0 < left < 12, "some are inside the clip and some outside"
    assert forwards == [12] + [1] * left


def count_rows(w: World, forwards: list[int]) -> None:
    w.network.register_forward_hook(lambda module, given, found: forwards.append(len(given[0])))


def test_gradients_are_zero_and_not_missing_where_everything_is_skipped() -> None:
    w = world("sdxl")
    parts = [part(w, 2, 2, 0, scores=torch.ones(2, 2))]
    block, runner = Block(parts), w.runner(DPO(beta=30.0))
    known, outcomes = references(w, block), []
    found = w.gradient(lambda: outcomes.append(outcome(TwoPass(), runner, block, known, reference_batch=4)))
    assert len(found) == sum(p.numel() for p in w.parameters) and not found.any()
    assert outcomes[0].skipped[0].tolist() == [0.5, 1.0]


@dataclass(frozen=True)
class Standardized:
    """An objective whose groups depend on each other: margins are divided by their mean size over the batch."""

    def __call__(self, errors: Errors, scores: torch.Tensor) -> torch.Tensor:
        margin = errors.log_ratio[:, 0] - errors.log_ratio[:, 1]
        return -torch.nn.functional.logsigmoid(margin / (0.01 + margin.abs().mean()))


@pytest.mark.parametrize("micro", [1, 3])
def test_groups_that_depend_on_each_other_stay_together(micro: int) -> None:
    w, objective = world("sdxl"), Standardized()
    parts = [part(w, 3, 2, seed) for seed in range(2)]
    block, runner = Block(parts), w.runner(objective)
    known = references(w, block)
    expected = w.gradient(lambda: autograd(w, objective, parts))
    for mode in (
        lambda: outcome(Deferred(), runner, block, known, micro_batch=micro, separable=False),
        lambda: outcome(TwoPass(), runner, block, known, micro_batch=micro),
    ):
        assert relative(w.gradient(mode), expected) < 1e-12
    wrong = w.gradient(lambda: outcome(Deferred(), runner, block, known, micro_batch=2))
    assert not relative(wrong, expected) < 1e-3


@pytest.mark.parametrize("name", CASES)
def test_our_objectives_groups_are_independent(name: str) -> None:
    case = CASES[name]
    scores = case.parts(world("sdxl"), case.sizes[0])[0].scores
    assert separable(case.objective, scores)
    assert not separable(Standardized(), torch.rand(3, 2))


def coupled_gradients(errors: Errors, scores: torch.Tensor) -> torch.Tensor:
    """Each loss is its own group's, but not its gradient."""
    loss = errors.log_ratio[:, 1] - errors.log_ratio[:, 0]
    with_all = loss * loss.mean()
    return loss + with_all - with_all.detach()


def test_gradients_that_depend_on_other_groups_are_found() -> None:
    assert not separable(coupled_gradients, torch.rand(3, 2))


def of_error_and_difference(errors: Errors, scores: torch.Tensor) -> torch.Tensor:
    """A user's objective that reads the policy's error beside its difference to the reference's."""
    return (errors.policy * errors.log_ratio.exp() * scores).sum(1)


@pytest.mark.parametrize("objective", [RankDPO(beta=10.0), of_error_and_difference])
def test_coefficients_are_finite_differences(objective: Loss) -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = (1 + 0.1 * torch.rand(2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    scores = torch.tensor([[0.1, 0.5, 0.9], [0.7, 0.7, 0.2]])

    def loss(errors: torch.Tensor, *, apart: bool) -> float:
        given = Errors(errors, reference, errors - reference) if apart else Errors(errors, reference)
        return float(objective(given, scores).sum())

    for apart in (False, True):
        given = Errors(policy, reference, policy - reference) if apart else Errors(policy, reference)
        _, slopes = coefficients(objective, given, scores)
        for group in range(2):
            for candidate in range(3):
                step = torch.zeros_like(policy)
                step[group, candidate] = 1e-6
                rise = (loss(policy + step, apart=apart) - loss(policy - step, apart=apart)) / 2e-6
                assert float(slopes[group, candidate]) == pytest.approx(rise, rel=1e-6, abs=1e-8)


def test_a_picture_in_several_pairs_runs_once() -> None:
    """All pairs of four chains at one step: four candidates, not twelve, and the gradient of the six losses."""
    w, objective = world("sdxl"), replace(CLIPPED, clip_style="none")
    whole = part(w, 1, 4, 0, steps=True)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    parts = []
    for i, j in pairs:
        probe = replace(whole.probe, x_t=whole.probe.x_t[:, [i, j]], target=whole.probe.target[:, [i, j]])
        parts.append(Part(probe, torch.tensor([[1.0, -1.0]]), (f"chain {i}", f"chain {j}")))
    block, runner = Block(parts), w.runner(objective)
    assert len(block.rows) == 4 and len(Block([replace(p, keys=()) for p in parts]).rows) == 12
    expected = w.gradient(lambda: autograd(w, objective, parts))
    known, forwards = references(w, block), []
    count_rows(w, forwards)
    for mode, runs in (
        (lambda: outcome(Deferred(), runner, block, known), [1] * 4),
        (lambda: outcome(Deferred(), runner, block, known, micro_batch=4), [4]),
        (lambda: outcome(TwoPass(), runner, block, known, micro_batch=2), [4, 2, 2]),
    ):
        forwards.clear()
        assert relative(w.gradient(mode), expected) < 1e-12
        assert forwards == runs
    # One batch that holds all six pairs.
    probe = whole.probe
    first, second = ([pair[place] for pair in pairs] for place in (0, 1))
    places = torch.tensor([first, second]).T
    cond = {name: value.expand(6, *value.shape[1:]) for name, value in probe.cond.items()}
    x_t, target = probe.x_t[0][places], probe.target[0][places]
    batch = replace(probe, x_t=x_t, target=target, t=probe.t.expand(6), weight=probe.weight.expand(6), cond=cond)
    names = tuple(f"chain {chain}" for pair in pairs for chain in pair)
    block = Block([Part(batch, torch.tensor([[1.0, -1.0]] * 6), names)])
    forwards.clear()
    assert relative(w.gradient(lambda: joint(w, objective, block, references(w, block))), expected) < 1e-12
    assert forwards == [4, 4], "the reference's and the policy's"


def test_groups_that_a_later_one_joins_are_one_component() -> None:
    """Pairs ab, cd and bc belong together although ab and cd share nothing; ef is alone."""
    w = world("sdxl", torch.float32)
    parts = [
        replace(part(w, 1, 2, seed), keys=(keys[0], keys[1])) for seed, keys in enumerate(("ab", "cd", "ef", "bc"))
    ]
    together, alone = Block(parts).components(separable=True)
    assert together.groups == ((0, 0), (1, 0), (3, 0)) and together.rows == (0, 1, 2, 3)
    assert alone.groups == ((2, 0),) and alone.rows == (4, 5)
