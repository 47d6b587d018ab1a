"""RankDPO against fixed numbers, loops written from the paper's text, the DCG lost by a swap, and weighted DPO."""

import itertools
import math
import random
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffpref.objectives import DPO, RankDPO
from diffpref.types import Errors

LOG_2 = math.log(2)
PHI = [1.0, 0.75, 0.2, 0.05]
# Delta of methods.md 12 for PHI, natural logarithm.
DELTA = {(0, 1): 0.169431, (0, 2): 0.614084, (0, 3): 0.792395, (1, 2): 0.100697, (1, 3): 0.186785, (2, 3): 0.011345}
quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
reals, units = st.floats(-3, 3), st.floats(0, 1)
# Lists of (log-ratio, score), the second kind with many ties.
lists = st.lists(st.tuples(reals, units), min_size=2, max_size=6)
tied_lists = st.lists(st.tuples(reals, st.sampled_from([0.0, 1 / 3, 2 / 3, 1.0])), min_size=2, max_size=4)


def double(rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def errors_of(log_ratio: object, requires_grad: bool = False) -> Errors:
    r = double(log_ratio)
    return Errors(policy=(1 - 2 * r).requires_grad_(requires_grad), reference=torch.ones_like(r))


def loss_of(objective: RankDPO, rows: list[tuple[float, float]]) -> float:
    return objective(errors_of([[r for r, _ in rows]]), double([[phi for _, phi in rows]])).item()


def by_loops(rows: list[tuple[float, float]], beta_of_paper: float, log: Callable[[float], float] = math.log) -> float:
    """Eqs. 5 to 7 as the paper writes them, for a list that is given best first."""
    total = 0.0
    for (i, (r_i, phi_i)), (j, (r_j, phi_j)) in itertools.combinations(enumerate(rows), 2):
        s_i, s_j = -2 * r_i, -2 * r_j  # policy error - reference error
        gains = abs((2**phi_i - 1) - (2**phi_j - 1))
        discounts = abs(1 / log(1 + (i + 1)) - 1 / log(1 + (j + 1)))
        z = -beta_of_paper * (s_i - s_j)
        total += gains * discounts * (math.log1p(math.exp(-z)) if z > 0 else -z + math.log1p(math.exp(z)))
    return total


def best_first(rows: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return sorted(rows, key=lambda row: -row[1])


def test_golden_numbers() -> None:
    """methods.md 12; its s is -2 r and its beta of 500 is 1000 here."""
    s = double([[-0.002, 0.001, -0.001, 0.003]])
    errors = Errors(policy=0.1 + s, reference=torch.full_like(s, 0.1))
    objective = RankDPO(beta=1000.0)
    assert objective(errors, double([PHI])).item() == pytest.approx(0.5799549, abs=5e-8)
    assert RankDPO() == RankDPO(beta=5000.0, discount="ln", normalize="sum")
    assert RankDPO.candidates == "lists" and RankDPO.scaling == "win_fraction"


def weights_of(discount: Literal["ln", "log2"]) -> Tensor:
    """Delta_ij of PHI, as second derivatives where policy and reference agree.

    (-log sigmoid)''(0) = 1/4, so for beta = 4 and r = -policy error / 2 the mixed derivative ij is -Delta_ij."""
    ones, objective = torch.ones(4, dtype=torch.float64), RankDPO(beta=4.0, discount=discount)
    hessian = torch.autograd.functional.hessian(
        lambda policy: objective(Errors(policy[None], ones[None]), double([PHI])).sum(), ones
    )
    assert isinstance(hessian, Tensor)
    return -hessian


@pytest.mark.parametrize(("discount", "scale"), [("ln", 1.0), ("log2", LOG_2)])
def test_golden_weights(discount: Literal["ln", "log2"], scale: float) -> None:
    weights = weights_of(discount)
    for pair, delta in DELTA.items():
        assert weights[pair].item() == pytest.approx(delta * scale, abs=6e-7)
    at_step_0 = RankDPO(discount=discount)(errors_of([[0.0] * 4]), double([PHI]))
    assert at_step_0.item() == pytest.approx(LOG_2 * 1.874737 * scale, abs=1e-6)


@pytest.mark.parametrize(("discount", "log"), [("ln", math.log), ("log2", math.log2)])
def test_a_weight_is_the_dcg_that_swapping_two_pictures_costs(
    discount: Literal["ln", "log2"], log: Callable[[float], float]
) -> None:
    def dcg(phi: list[float]) -> float:
        return sum((2**p - 1) / log(1 + rank) for rank, p in enumerate(phi, 1))

    weights = weights_of(discount)
    for i, j in DELTA:
        swapped = list(PHI)
        swapped[i], swapped[j] = PHI[j], PHI[i]
        assert weights[i, j].item() == pytest.approx(dcg(PHI) - dcg(swapped), rel=1e-12)


@quick
@given(lists, st.floats(0.1, 20))
def test_is_the_papers_sum_written_as_loops(rows: list[tuple[float, float]], beta: float) -> None:
    rows = list({phi: (r, phi) for r, phi in rows}.values())  # ties have their own test
    if len(rows) < 2:
        rows = [(0.3, 0.0), (0.1, 1.0)]
    natural, binary = by_loops(best_first(rows), beta / 2), by_loops(best_first(rows), beta / 2, math.log2)
    assert loss_of(RankDPO(beta), rows) == pytest.approx(natural, rel=1e-10, abs=1e-12)
    assert loss_of(RankDPO(beta, discount="log2"), rows) == pytest.approx(binary, rel=1e-10, abs=1e-12)


@quick
@given(tied_lists, st.floats(0.1, 20))
def test_ties_cost_the_mean_over_the_orders_that_break_them(rows: list[tuple[float, float]], beta: float) -> None:
    orders = [p for p in itertools.permutations(rows) if all(a[1] >= b[1] for a, b in itertools.pairwise(p))]
    mean = sum(by_loops(list(order), beta / 2) for order in orders) / len(orders)
    assert loss_of(RankDPO(beta), rows) == pytest.approx(mean, rel=1e-10, abs=1e-12)


@quick
@given(reals, reals, units, units, st.floats(0.1, 20))
def test_two_candidates_are_weighted_dpo(r0: float, r1: float, s0: float, s1: float, beta: float) -> None:
    weight = abs(2**s0 - 2**s1) * (1 / math.log(2) - 1 / math.log(3))
    plain = DPO(beta)(errors_of([[r0, r1]]), double([[s0, s1]])).item()
    assert loss_of(RankDPO(beta), [(r0, s0), (r1, s1)]) == pytest.approx(weight * plain, rel=1e-10, abs=1e-14)


@quick
@given(st.one_of(lists, tied_lists), st.integers(0, 99), st.sampled_from(["sum", "pairs", "weights"]))
def test_the_order_of_the_candidates_is_nothing(
    rows: list[tuple[float, float]], seed: int, normalize: Literal["sum", "pairs", "weights"]
) -> None:
    shuffled = random.Random(seed).sample(rows, len(rows))
    objective = RankDPO(2.0, normalize=normalize)
    assert loss_of(objective, shuffled) == pytest.approx(loss_of(objective, rows), rel=1e-9, abs=1e-12)


def test_normalizations() -> None:
    rows = list(zip([0.3, -0.2, 0.5, 0.1], PHI, strict=True))
    plain, pairs, weights = (loss_of(RankDPO(2.0, normalize=name), rows) for name in ("sum", "pairs", "weights"))
    assert pairs == pytest.approx(plain / 6, rel=1e-12)
    assert weights == pytest.approx(plain / 1.874737, rel=1e-6)
    for level in ([(0.0, phi) for phi in PHI], [(0.0, 0.5), (0.0, 0.501)]):  # the weights sum to 1.87 and to 3e-4
        assert loss_of(RankDPO(normalize="weights"), level) == pytest.approx(LOG_2, rel=1e-12)


@pytest.mark.parametrize("normalize", ["sum", "pairs", "weights"])
def test_a_list_of_equal_scores_prefers_nothing(normalize: Literal["sum", "pairs", "weights"]) -> None:
    errors = errors_of([[0.3, -0.2, 0.5]], requires_grad=True)
    loss = RankDPO(normalize=normalize)(errors, double([[0.4, 0.4, 0.4]]))
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss.sum(), errors.policy)[0], double([[0.0] * 3]))


@pytest.mark.parametrize("normalize", ["sum", "pairs", "weights"])
def test_gradcheck(normalize: Literal["sum", "pairs", "weights"]) -> None:
    policy = double([[0.5, 0.2, 0.4], [0.1, 0.9, 0.3]]).requires_grad_()
    reference = double([[0.2, 0.4, 0.1], [0.3, 0.5, 0.6]]).requires_grad_()
    scores = double([[0.9, 0.1, 0.4], [0.0, 1.0, 1.0]])
    objective = RankDPO(3.0, normalize=normalize)
    assert torch.autograd.gradcheck(lambda p, r: objective(Errors(p, r), scores), (policy, reference))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [1e4, 1e30])
def test_extreme_margins(margin: float, dtype: torch.dtype) -> None:
    policy = torch.tensor([[0.0, margin, margin], [margin, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    scores = torch.tensor([[1.0, 0.0, 0.0]] * 2, dtype=dtype)
    loss = RankDPO(beta=2.0, normalize="weights")(Errors(policy, torch.zeros_like(policy)), scores)
    gradient = torch.autograd.grad(loss.sum(), policy)[0]
    # Won by far: nothing left. Lost by far: the loss is the margin, its slope shared by the two that won.
    torch.testing.assert_close(loss.double(), double([0.0, margin]), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), double([[0.0] * 3, [1.0, -0.5, -0.5]]), rtol=1e-6, atol=1e-7)


def test_half_precision_scores_are_used_as_they_are() -> None:
    errors = Errors(policy=torch.tensor([[0.100, 0.101, 0.099]]), reference=torch.tensor([[0.1002, 0.1008, 0.1]]))
    scores = torch.tensor([[0.627, 0.507, 0.1]]).bfloat16()
    exact = Errors(errors.policy.double(), errors.reference.double())
    # float32's rounding of errors near 0.1, times 5000.
    assert RankDPO()(errors, scores).item() == pytest.approx(RankDPO()(exact, scores.double()).item(), abs=1e-4)


# --- what it refuses


def test_a_list_has_two_candidates_or_more() -> None:
    with pytest.raises(ValueError, match="ranks at least two candidates, got 1: give every prompt a list"):
        RankDPO()(errors_of([[0.1]]), double([[0.5]]))


@pytest.mark.parametrize(("score", "span"), [(1.01, "0.5 to 1.01"), (-0.01, "-0.01 to 0.5"), (math.nan, "nan")])
def test_scores_must_be_in_0_1(score: float, span: str) -> None:
    with pytest.raises(ValueError, match=rf"scores must be in \[0, 1\], got {span}.*: use the share of the others"):
        RankDPO()(errors_of([[0.1, 0.2, 0.3]]), double([[0.5, score, 0.5]]))


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_beta_must_be_positive(beta: float) -> None:
    with pytest.raises(ValueError, match=f"beta must be above 0, got {beta}"):
        RankDPO(beta=beta)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("discount", "discount must be one of ln, log2, got 'mean'"),
        ("normalize", "normalize must be one of sum, pairs, weights, got 'mean'"),
    ],
)
def test_choices_must_be_known(name: str, message: str) -> None:
    objective = RankDPO()
    object.__setattr__(objective, name, "mean")  # the constructor's own types are checked in tests, before this
    with pytest.raises(ValueError, match=message):
        objective.__post_init__()
