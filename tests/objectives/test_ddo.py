"""DDO against fixed numbers, binary cross-entropy, and the optimum of theorem 3.3 between two known Gaussians."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffpref.objectives import DDO
from diffpref.types import Errors
from tests.gaussian import GaussianData

LOG_2 = math.log(2)
quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
groups = st.lists(st.tuples(st.floats(-3, 3), st.booleans()), min_size=1, max_size=6)


def double(rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def errors_of(log_ratio: object, requires_grad: bool = False) -> Errors:
    r = double(log_ratio)
    return Errors(policy=(1 - 2 * r).requires_grad_(requires_grad), reference=torch.ones_like(r))


def test_golden_numbers() -> None:
    """methods.md 12: its differences are 2 D r and its beta of 0.05 is 2 D 0.05 here, for D elements."""
    elements = 3072
    errors = errors_of([[10 / (2 * elements), -8 / (2 * elements)], [0.0, 0.0]])
    loss = DDO(alpha=2.0, beta=2 * elements * 0.05)(errors, double([[1, 0], [1, 0]]))
    torch.testing.assert_close(loss, double([1.5001075, 2.0794415]), rtol=0, atol=6e-8)
    assert DDO() == DDO(alpha=4.0, beta=300.0)
    assert DDO.candidates == "real_fake" and DDO.scaling == "none"


@pytest.mark.parametrize("alpha", [0.0, 0.5, 4.0, 100.0])
def test_loss_at_step_0(alpha: float) -> None:
    """Of each kind log 2, the fake ones alpha times; a missing kind counts 0."""
    scores = double([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0]])
    loss = DDO(alpha=alpha)(errors_of([[0.0] * 3] * 4), scores)
    expected = [(1 + alpha) * LOG_2, (1 + alpha) * LOG_2, LOG_2, alpha * LOG_2]
    torch.testing.assert_close(loss, double(expected), rtol=1e-12, atol=0)


@quick
@given(groups, st.floats(0, 10), st.floats(0.1, 20))
def test_is_binary_cross_entropy_with_logits_beta_r(rows: list[tuple[float, bool]], alpha: float, beta: float) -> None:
    """The mean over the real ones, and alpha times that over the fake ones."""
    expected = 0.0
    for kind, weight in ((True, 1.0), (False, alpha)):
        logits = double([beta * r for r, real in rows if real == kind])
        if len(logits):
            labels = torch.full_like(logits, float(kind))
            expected += weight * F.binary_cross_entropy_with_logits(logits, labels).item()
    loss = DDO(alpha, beta)(errors_of([[r for r, _ in rows]]), double([[float(real) for _, real in rows]]))
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-14)


# --- the optimum


DATA, OLD = GaussianData(0.7, 0.8), GaussianData(-0.2, 1.1)
GRID = torch.linspace(-3, 3, 61, dtype=torch.float64)


def population_loss(objective: DDO, log_policy: Tensor) -> Tensor:
    """E_data[loss of a real x] + E_ref[loss of a fake x] by quadrature; one element, so an error is -2 log density."""
    errors = Errors(-2 * log_policy[:, None], -2 * OLD.log_density(GRID)[:, None])
    real, fake = (objective(errors, torch.full_like(errors.policy, kind)) for kind in (1.0, 0.0))
    step = GRID[1] - GRID[0]
    return (step * (DATA.log_density(GRID).exp() * real + OLD.log_density(GRID).exp() * fake)).sum()


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_optimum_is_that_of_theorem_3_3(beta: float) -> None:
    """The log-density is free at every point of the grid and starts at the reference's; alpha = 1."""
    log_policy = OLD.log_density(GRID)
    for _ in range(25):  # Newton's method; each point has its own log-density, so the Hessian is diagonal
        log_policy.requires_grad_()
        loss = population_loss(DDO(alpha=1.0, beta=beta), log_policy)
        (slope,) = torch.autograd.grad(loss, log_policy, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), log_policy)
        log_policy = (log_policy - slope / curvature).detach()
    expected = (1 - 1 / beta) * OLD.log_density(GRID) + DATA.log_density(GRID) / beta
    torch.testing.assert_close(log_policy, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_optimum_is_stationary(alpha: float, beta: float) -> None:
    """For any alpha sigmoid(beta r) is the share of real pictures at x, data / (data + alpha ref)."""
    ratio = DATA.log_density(GRID) - OLD.log_density(GRID) - math.log(alpha)
    best = (OLD.log_density(GRID) + ratio / beta).requires_grad_()
    (gradient,) = torch.autograd.grad(population_loss(DDO(alpha, beta), best), best)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)
    # and nowhere near is better
    for shift in (0.1, -0.1):
        away = best.detach() + shift * torch.linspace(0.5, 1.5, len(GRID)).double()
        assert population_loss(DDO(alpha, beta), away) > population_loss(DDO(alpha, beta), best.detach()) + 1e-4


# --- precision


def test_gradcheck() -> None:
    policy = double([[0.5, 0.2, 0.4], [0.1, 0.9, 0.3], [0.7, 0.2, 0.1]]).requires_grad_()
    reference = double([[0.2, 0.4, 0.1], [0.3, 0.5, 0.6], [0.1, 0.8, 0.5]]).requires_grad_()
    scores = double([[1, 0, 0], [1, 1, 1], [0, 0, 0]])
    assert torch.autograd.gradcheck(lambda p, r: DDO(2.0, 3.0)(Errors(p, r), scores), (policy, reference))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_ratios(size: float, dtype: torch.dtype) -> None:
    policy = torch.tensor([[0.0, size], [size, 0.0], [size, -size]], dtype=dtype, requires_grad=True)
    scores = torch.tensor([[1.0, 0.0]] * 3, dtype=dtype)
    loss = DDO(alpha=3.0, beta=2.0)(Errors(policy, torch.zeros_like(policy)), scores)
    gradient = torch.autograd.grad(loss.sum(), policy)[0]
    # r = -error / 2, so 2 r = -size: told apart (fake), taken for fake (real), and both wrong.
    expected = double([LOG_2, size + 3 * LOG_2, size + 3 * size])
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), double([[0.5, 0], [1, -1.5], [1, -3]]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_type_of_the_scores_is_nothing(dtype: torch.dtype) -> None:
    # Shares of a third would be rounded to 0.334 in bfloat16.
    errors = Errors(policy=torch.tensor([[0.101, 0.1, 0.102, 0.1]]), reference=torch.full((1, 4), 0.1))
    scores = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert DDO()(errors, scores.to(dtype)).item() == pytest.approx(DDO()(errors, scores).item(), rel=1e-7)


# --- what it refuses


@pytest.mark.parametrize("score", [0.5, -1.0, 2.0, math.nan])
def test_scores_are_1_or_0(score: float) -> None:
    message = f"scores must be 1 for real and 0 for fake pictures, got {score:g}: label every picture"
    with pytest.raises(ValueError, match=message):
        DDO()(errors_of([[0.1, 0.2, 0.3]]), double([[1.0, score, 0.0]]))


@pytest.mark.parametrize("alpha", [-0.1, math.nan])
def test_alpha_must_not_be_negative(alpha: float) -> None:
    with pytest.raises(ValueError, match=f"alpha must be 0 or above, got {alpha}"):
        DDO(alpha=alpha)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_beta_must_be_positive(beta: float) -> None:
    with pytest.raises(ValueError, match=f"beta must be above 0, got {beta}"):
        DDO(beta=beta)
