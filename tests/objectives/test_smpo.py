"""SmPO against the official numbers, an explicit softmax, DPO on smoothed likelihoods, and finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffpref.objectives import DPO, SmPO
from diffpref.types import Errors

LOG_2 = math.log(2)
quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
reals, units = st.floats(-3, 3), st.floats(0, 1)
# The smallest and largest PickScore of Pick-a-Pic in the official code (methods.md 3.2).
LEAST, MOST = 0.11543526500463486, 0.28201571106910706


def double(rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def errors_of(log_ratio: object, requires_grad: bool = False) -> Errors:
    r = double(log_ratio)
    return Errors(policy=(1 - 2 * r).requires_grad_(requires_grad), reference=torch.ones_like(r))


def test_golden_numbers() -> None:
    """The factors W of methods.md 12, read off the loss where DPO's margin is 1: log(1 + e^-W)."""
    errors = Errors(policy=double([[0.1000, 0.1010]]), reference=double([[0.1002, 0.1008]]))
    cosines = [(0.22, 0.20), (0.22, 0.21), (0.2150, 0.2145), (MOST, LEAST)]
    for pair, expected in zip(cosines, [0.5995905, 0.3000652, 0.0150078, 4.6211716], strict=True):
        scores = (double([pair]) - LEAST) / (MOST - LEAST)
        factor = -math.log(math.expm1(SmPO()(errors, scores).item()))
        assert factor == pytest.approx(expected, abs=6e-8)
    assert SmPO().beta == 5000.0 and SmPO().gamma == 10.0
    assert SmPO.candidates == "pairs" and SmPO.scaling == "min_max"


@quick
@given(reals, reals, units, units, st.floats(0.01, 20), st.floats(0.1, 20))
def test_is_dpo_at_the_factor_of_an_explicit_softmax(
    r0: float, r1: float, s0: float, s1: float, beta: float, gamma: float
) -> None:
    errors, scores = errors_of([[r0, r1]]), double([[s0, s1]])
    got = SmPO(beta, gamma)(errors, scores)
    p = math.exp(s0) / (math.exp(s0) + math.exp(s1))
    factor = gamma * abs(2 * p - 1)
    # DPO names a winner; here the sign of the factor does.
    expected = DPO(beta * factor)(errors, scores) if factor > 0 else double([LOG_2])
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@quick
@given(reals, reals, units, units, st.floats(0.5, 20))
def test_is_dpo_on_the_smoothed_likelihoods(r0: float, r1: float, s0: float, s1: float, gamma: float) -> None:
    """Eqs. 8 and 9: each likelihood becomes p_0^alpha p_1^(gamma - alpha) or its mirror image, alpha = gamma P."""
    alpha = gamma * torch.softmax(double([s0, s1]), 0)[0].item()
    smooth = [[alpha * r0 + (gamma - alpha) * r1, alpha * r1 + (gamma - alpha) * r0]]
    got = SmPO(0.7, gamma)(errors_of([[r0, r1]]), double([[s0, s1]]))
    expected = DPO(0.7)(errors_of(smooth), double([[1.0, 0.0]]))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_a_strength_of_1_and_full_certainty_would_be_dpo() -> None:
    errors, scores = errors_of([[0.3, -0.2], [0.3, -0.2]]), double([[1.0, 0.0], [0.0, 1.0]])
    certain = SmPO(beta=2.0, gamma=1 / math.tanh(0.5))
    torch.testing.assert_close(certain(errors, scores), DPO(beta=2.0)(errors, scores), rtol=1e-12, atol=0)


@pytest.mark.parametrize("score", [0.0, 0.3, 1.0])
def test_equal_scores_prefer_neither(score: float) -> None:
    errors = errors_of([[0.3, -0.1], [-2.0, 5.0]], requires_grad=True)
    loss = SmPO()(errors, double([[score, score]] * 2))
    torch.testing.assert_close(loss, double([LOG_2] * 2), rtol=0, atol=1e-15)
    assert torch.equal(torch.autograd.grad(loss.sum(), errors.policy)[0], double([[0.0, 0.0]] * 2))


@quick
@given(reals, reals, units, units)
def test_swapping_the_pictures_and_their_rewards_changes_nothing(r0: float, r1: float, s0: float, s1: float) -> None:
    there = SmPO(2.0, 3.0)(errors_of([[r0, r1]]), double([[s0, s1]]))
    back = SmPO(2.0, 3.0)(errors_of([[r1, r0]]), double([[s1, s0]]))
    torch.testing.assert_close(there, back, rtol=1e-12, atol=1e-12)


def test_gradcheck() -> None:
    policy = double([[0.5, 0.2], [0.1, 0.9], [0.3, 0.3]]).requires_grad_()
    reference = double([[0.2, 0.4], [0.3, 0.5], [0.1, 0.8]]).requires_grad_()
    scores = double([[0.9, 0.2], [0.1, 0.15], [0.05, 0.95]]).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, r, s: SmPO(2.0, 3.0)(Errors(p, r), s), (policy, reference, scores))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [1e4, 1e30])
def test_extreme_margins(margin: float, dtype: torch.dtype) -> None:
    policy = torch.tensor([[0.0, margin], [margin, 0.0]], dtype=dtype, requires_grad=True)
    objective = SmPO(beta=2.0, gamma=1 / math.tanh(0.5))
    loss = objective(Errors(policy, torch.zeros_like(policy)), torch.tensor([[1.0, 0.0]] * 2, dtype=dtype))
    gradient = torch.autograd.grad(loss.sum(), policy)[0]
    # Won by far: nothing left. Lost by far: the loss is the margin and its slope is beta W / 2 = 1.
    torch.testing.assert_close(loss.double(), double([0.0, margin]), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), double([[0.0, 0.0], [1.0, -1.0]]), rtol=1e-6, atol=0)


def test_half_precision_rewards_are_used_as_they_are() -> None:
    """Rewards are rounded once, by their own type, and nothing after that is."""
    errors = Errors(policy=torch.tensor([[0.100, 0.101]]), reference=torch.tensor([[0.1002, 0.1008]]))
    rewards = torch.tensor([[0.627, 0.507]]).bfloat16()
    exact = Errors(errors.policy.double(), errors.reference.double())
    # float32's rounding of errors near 0.1, times 5000.
    assert SmPO()(errors, rewards).item() == pytest.approx(SmPO()(exact, rewards.double()).item(), abs=1e-4)


# --- what it refuses


@pytest.mark.parametrize("k", [1, 3])
def test_compares_two(k: int) -> None:
    with pytest.raises(ValueError, match=f"SmPO compares two candidates, got {k}: turn ranked lists into pairs"):
        SmPO()(errors_of([[0.1] * k]), double([[0.0] * k]))


@pytest.mark.parametrize(
    ("pair", "span"),
    [
        ((21.5, 20.0), "20 to 21.5"),
        ((0.5, -0.01), "-0.01 to 0.5"),
        ((1.01, 1.0), "1 to 1.01"),
        ((0.5, math.nan), "nan"),
    ],
)
def test_rewards_must_be_scaled(pair: tuple[float, float], span: str) -> None:
    with pytest.raises(ValueError, match=rf"scores must be in \[0, 1\], got {span}.*: min-max scale the rewards"):
        SmPO()(errors_of([[0.1, 0.2]] * 2), double([[0.0, 1.0], pair] if math.nan in pair else [pair, pair]))


@pytest.mark.parametrize("name", ["beta", "gamma"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_strengths_must_be_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be above 0, got {value}"):
        SmPO(**{name: value})
