"""Diffusion-DPO against hand-computed numbers, Bradley-Terry, and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffpref.errors import prediction_error
from diffpref.objectives import DPO
from diffpref.types import Errors

LOG_2 = math.log(2)
FIRST, SECOND, NEITHER = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]
quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
reals = st.floats(-3, 3)


def double(rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def errors_of(policy: object, reference: object, requires_grad: bool = False) -> Errors:
    return Errors(policy=double(policy).requires_grad_(requires_grad), reference=double(reference))


def loss_of(objective: DPO, policy: object, reference: object, scores: object) -> Tensor:
    return objective(errors_of(policy, reference), double(scores))


def gradient_of(objective: DPO, policy: object, reference: object, scores: object) -> Tensor:
    errors = errors_of(policy, reference, requires_grad=True)
    return torch.autograd.grad(objective(errors, double(scores)).sum(), errors.policy)[0]


def test_golden_numbers() -> None:
    """methods.md 12, worked from eq. 14: 5000 / 2 * ((.1002 - .1000) - (.1008 - .1010)) = 1."""
    policy, reference = [[0.1000, 0.1010]], [[0.1002, 0.1008]]
    assert loss_of(DPO(), policy, reference, [FIRST]).item() == pytest.approx(0.3132617, abs=5e-8)
    assert gradient_of(DPO(), policy, reference, [FIRST])[0].tolist() == pytest.approx([672.3536, -672.3536], abs=5e-5)
    # The other picture preferred: a margin of -1 costs 1 more.
    assert loss_of(DPO(), policy, reference, [SECOND]).item() == pytest.approx(1.3132617, abs=5e-8)
    assert DPO().beta == 5000.0 and DPO().anchor == DPO().sft == 0.0


@quick
@given(st.lists(st.tuples(reals, reals, reals, reals, st.booleans()), min_size=1, max_size=4), st.floats(0.01, 100))
def test_is_bradley_terry_over_the_log_ratios(rows: list[tuple[float, ...]], beta: float) -> None:
    """The cross-entropy of picking the better picture when each has the logit beta * log-ratio."""
    errors = errors_of([row[:2] for row in rows], [row[2:4] for row in rows])
    scores = double([FIRST if row[4] else SECOND for row in rows])
    expected = F.cross_entropy(beta * errors.log_ratio, scores.argmax(1), reduction="none")
    torch.testing.assert_close(DPO(beta)(errors, scores), expected, rtol=1e-10, atol=1e-12)


@quick
@given(*[reals] * 6, st.floats(0, 2), st.floats(0, 2))
def test_swapping_the_candidates_and_their_scores_changes_nothing(
    p0: float, p1: float, r0: float, r1: float, s0: float, s1: float, anchor: float, sft: float
) -> None:
    objective = DPO(beta=3.0, anchor=anchor, sft=sft)
    there = loss_of(objective, [[p0, p1]], [[r0, r1]], [[s0, s1]])
    back = loss_of(objective, [[p1, p0]], [[r1, r0]], [[s1, s0]])
    torch.testing.assert_close(there, back, rtol=1e-12, atol=1e-12)


def test_only_the_order_of_the_scores_counts() -> None:
    policy, reference = [[0.3, 0.5]] * 3, [[0.4, 0.1]] * 3
    losses = loss_of(DPO(beta=7.0), policy, reference, [[1e-6, 0.0], [-3.0, -900.0], [1.0, 0.0]])
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("beta", [5000.0, 1e5])
def test_the_type_of_the_scores_is_nothing(dtype: torch.dtype, beta: float) -> None:
    # 5000 is 4992 in bfloat16 and 1e5 is infinite in float16.
    errors = Errors(policy=torch.tensor([[0.100, 0.101]]), reference=torch.tensor([[0.1002, 0.1008]]))
    scores = torch.tensor([FIRST])
    assert DPO(beta)(errors, scores.to(dtype)).item() == pytest.approx(DPO(beta)(errors, scores).item(), rel=1e-6)


@pytest.mark.parametrize("objective", [DPO(), DPO(anchor=1.0), DPO(sft=0.3), DPO(anchor=2.0, sft=0.5)])
def test_equal_scores_prefer_neither(objective: DPO) -> None:
    for policy in ([[0.3, 0.1]], [[0.1, 0.3]]):
        assert loss_of(objective, policy, [[0.2, 0.2]], [NEITHER]).item() == pytest.approx(LOG_2, abs=1e-15)
        assert torch.equal(gradient_of(objective, policy, [[0.2, 0.2]], [NEITHER]), double([[0.0, 0.0]]))


@pytest.mark.parametrize(
    "objective", [DPO(beta=1.0), DPO(beta=40.0), DPO(beta=2.0, anchor=0.7), DPO(beta=2.0, anchor=1.5, sft=0.4)]
)
def test_gradcheck(objective: DPO) -> None:
    """Finite differences in both arguments; each pair is away from the anchor's kink, on either side of it."""
    policy = double([[0.5, 0.2], [0.1, 0.9], [0.3, 0.3], [1.0, 2.0]]).requires_grad_()
    reference = double([[0.2, 0.4], [0.3, 0.5], [0.1, 0.8], [1.5, 1.0]]).requires_grad_()
    scores = double([FIRST, SECOND, SECOND, FIRST])
    assert torch.autograd.gradcheck(lambda p, r: objective(Errors(p, r), scores), (policy, reference))


def test_gradient_is_that_of_methods_md_0_4() -> None:
    """kappa sigma(-m) on the chosen error and its opposite on the rejected one, kappa = beta / 2."""
    got = gradient_of(DPO(beta=6.0), [[0.5, 0.2], [0.2, 0.5]], [[0.4, 0.4], [0.4, 0.4]], [FIRST, SECOND])
    margin = 3.0 * ((0.4 - 0.5) - (0.4 - 0.2))
    slope = 3.0 / (1 + math.exp(margin))
    torch.testing.assert_close(got, double([[slope, -slope], [-slope, slope]]), rtol=1e-12, atol=0)


def test_small_beta_is_linear() -> None:
    """For beta -> 0 the loss is log 2 - margin / 2, so its slope is beta / 4 wherever the errors are."""
    got = gradient_of(DPO(beta=1e-8), [[0.5, 0.2], [3.0, 9.0]], [[0.4, 0.4], [1.0, 0.2]], [FIRST, FIRST])
    torch.testing.assert_close(got / 1e-8, double([[0.25, -0.25]] * 2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [1e4, 1e8, 1e30])
@pytest.mark.parametrize("objective", [DPO(beta=2.0), DPO(beta=2.0, anchor=1.0, sft=1.0)])
def test_extreme_margins(objective: DPO, margin: float, dtype: torch.dtype) -> None:
    policy = torch.tensor([[0.0, margin], [margin, 0.0]], dtype=dtype, requires_grad=True)
    loss = objective(Errors(policy, torch.zeros(2, 2, dtype=dtype)), torch.tensor([FIRST, FIRST], dtype=dtype))
    gradient = torch.autograd.grad(loss.sum(), policy)[0]
    assert loss.isfinite().all() and gradient.isfinite().all()
    # Won by far: nothing left of the preference. Lost by far: the loss is the margin and its slope is beta / 2.
    extra = objective.anchor + objective.sft
    torch.testing.assert_close(loss.double(), double([0.0, margin * (1 + extra)]), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), double([[objective.sft, 0.0], [1 + extra, -1.0]]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_lose_nothing_on_the_way(dtype: torch.dtype) -> None:
    """From half-precision predictions to the loss at beta 5000: float32 throughout."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4, 2, 64, generator=generator).to(dtype)
    policy, reference = (target + 0.1 * torch.randn(4, 2, 64, generator=generator).to(dtype) for _ in range(2))
    scores = torch.tensor([FIRST, SECOND, SECOND, FIRST], dtype=dtype)
    weight = torch.ones(4)
    loss = DPO()(Errors(*(prediction_error(model, target, weight) for model in (policy, reference))), scores)
    exact = Errors(*((model.double() - target.double()).square().mean(2) for model in (policy, reference)))
    assert loss.dtype == torch.float32
    # 5000 times float32's rounding of errors near 0.01.
    torch.testing.assert_close(loss.double(), DPO()(exact, scores.double()), rtol=1e-5, atol=2e-5)


def test_half_precision_errors_are_finite() -> None:
    policy = torch.tensor([[0.1, 0.2], [3e4, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = DPO()(Errors(policy, torch.zeros(2, 2, dtype=torch.bfloat16)), torch.tensor([FIRST, FIRST]))
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), policy)[0].isfinite().all()


# --- anchor and sft


@pytest.mark.parametrize("chosen", [0, 1])
def test_anchor_is_free_below_and_linear_above_the_reference(chosen: int) -> None:
    scores, plain, anchored = [[FIRST, SECOND][chosen]], DPO(beta=4.0), DPO(beta=4.0, anchor=0.7)

    def extra(chosen_error: float, rejected_error: float) -> float:
        policy = [[chosen_error, rejected_error] if chosen == 0 else [rejected_error, chosen_error]]
        both = (loss_of(objective, policy, [[0.5, 0.5]], scores) for objective in (anchored, plain))
        return float(next(both) - next(both))

    for rejected in (0.1, 0.5, 2.0):
        assert extra(0.2, rejected) == extra(0.5, rejected) == 0
        assert extra(0.9, rejected) == pytest.approx(0.7 * 4.0 / 2 * 0.4, rel=1e-12)
        assert extra(1.3, rejected) - extra(0.9, rejected) == pytest.approx(0.7 * 4.0 / 2 * 0.4, rel=1e-12)


@pytest.mark.parametrize("chosen", [0, 1])
def test_sft_pulls_on_the_chosen_picture_everywhere(chosen: int) -> None:
    scores, policy = [[FIRST, SECOND][chosen]] * 2, [[0.2, 0.3], [0.9, 1.1]]
    reference = [[0.5, 0.4]] * 2
    plain, pulled = DPO(beta=4.0), DPO(beta=4.0, sft=0.3)
    slope = gradient_of(pulled, policy, reference, scores) - gradient_of(plain, policy, reference, scores)
    expected = torch.zeros(2, 2, dtype=torch.float64)
    expected[:, chosen] = 0.3 * 4.0 / 2
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-14)
    value = loss_of(pulled, policy, reference, scores) - loss_of(plain, policy, reference, scores)
    drop = double(policy)[:, chosen] - double(reference)[:, chosen]
    torch.testing.assert_close(value, 0.6 * drop, rtol=1e-12, atol=1e-14)


def test_anchor_and_sft_add_up() -> None:
    arguments = ([[0.9, 0.3]], [[0.5, 0.4]], [FIRST])
    plain, anchor, sft, both = (
        loss_of(DPO(beta=4.0, anchor=a, sft=s), *arguments) for a, s in ((0, 0), (0.7, 0), (0, 0.3), (0.7, 0.3))
    )
    torch.testing.assert_close(both - plain, (anchor - plain) + (sft - plain), rtol=1e-12, atol=0)


# --- what it refuses


@pytest.mark.parametrize("k", [1, 3])
def test_compares_two(k: int) -> None:
    with pytest.raises(ValueError, match=f"compares two candidates, got {k}: turn ranked lists into pairs"):
        loss_of(DPO(), [[0.1] * k], [[0.1] * k], [[0.0] * k])


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_beta_must_be_positive(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must be above 0"):
        DPO(beta=beta)


@pytest.mark.parametrize("name", ["anchor", "sft"])
def test_additions_must_not_be_negative(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be 0 or above, got -0.1"):
        DPO(**{name: -0.1})


def test_is_frozen() -> None:
    with pytest.raises(AttributeError):
        DPO().beta = 1.0  # type: ignore[misc]
