"""Aggregators against numbers worked by hand, counting loops, symmetries and limits."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffpref.rewards.aggregate import mean_z, pareto, ranks, win_count, win_prob

FUNCTIONS = {"win_count": win_count, "win_prob": win_prob, "mean_z": mean_z, "pareto": pareto}

# Syn-Pic's shape: k = 4 pictures, n = 5 rewards. Wins of the pictures, row by row, worked by hand:
GOLDEN = torch.tensor(
    [
        [0.21, 0.30, 0.25, 0.28],  # 0 3 1 2
        [10.0, 20.0, 20.0, 5.0],  # 1 2 2 0, a tie
        [-3.0, -1.0, -2.0, -4.0],  # 1 3 2 0
        [0.5, 0.5, 0.5, 0.5],  # 0 0 0 0, all tied
        [4.0, 3.0, 2.0, 1.0],  # 3 2 1 0
    ],
    dtype=torch.float64,
)
GOLDEN_PHI = [5 / 15, 10 / 15, 6 / 15, 2 / 15]

# Small whole numbers make ties common; eighths are exact in floating point.
numbers = st.integers(-4, 4).map(lambda i: i / 8)


@st.composite
def score_tables(draw: st.DrawFn) -> Tensor:
    r, k = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    row = st.lists(numbers, min_size=k, max_size=k)
    return torch.tensor(draw(st.lists(row, min_size=r, max_size=r)), dtype=torch.float64)


def arguments(name: str, scores: Tensor) -> dict[str, Tensor]:
    """What each aggregator needs besides the scores; it differs from reward to reward."""
    steps = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    if name == "win_prob":
        return {"temperatures": steps / 4}
    return {"mean": steps, "std": steps / 2} if name == "mean_z" else {}


def test_win_count_by_hand() -> None:
    phi = win_count(GOLDEN)
    assert phi.dtype == torch.float64 and phi.tolist() == GOLDEN_PHI
    # The second reward three times, the fourth not at all: (0 3 1 2 + 3 6 6 0 + 1 3 2 0 + 3 2 1 0) / (6 * 3).
    weighted = win_count(GOLDEN, weights=torch.tensor([1.0, 3.0, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(weighted.tolist(), [7 / 18, 14 / 18, 10 / 18, 2 / 18])
    assert win_count(GOLDEN.float()[:1]).tolist() == [0, 1, 1 / 3, 2 / 3]


@given(score_tables())
@settings(max_examples=60, deadline=None)
def test_win_count_by_counting_and_its_quantum(scores: Tensor) -> None:
    r, k = scores.shape
    wins = [sum(scores[m, i] > scores[m, j] for m in range(r) for j in range(k)) for i in range(k)]
    phi = win_count(scores)
    torch.testing.assert_close(phi, torch.tensor(wins, dtype=torch.float64) / (r * (k - 1)), atol=1e-15, rtol=0)
    assert win_count(scores).sum() <= k / 2 + 1e-12


@given(score_tables())
@settings(max_examples=40, deadline=None)
def test_win_count_and_pareto_see_only_the_order(scores: Tensor) -> None:
    bent = torch.stack([(row * (2 + m)).exp() - 7 * m for m, row in enumerate(scores)])
    assert torch.equal(win_count(bent), win_count(scores))
    assert torch.equal(pareto(bent), pareto(scores))


@pytest.mark.parametrize("name", FUNCTIONS)
@given(scores=score_tables(), data=st.data())
@settings(max_examples=30, deadline=None)
def test_no_picture_and_no_reward_comes_first(name: str, scores: Tensor, data: st.DataObject) -> None:
    """Pictures in another order take their values with them; rewards in another order change nothing but rounding."""
    extra = {**arguments(name, scores), "weights": torch.arange(1.0, len(scores) + 1).double()}
    value = FUNCTIONS[name](scores, **extra)
    pictures = data.draw(st.permutations(range(scores.shape[1])))
    torch.testing.assert_close(FUNCTIONS[name](scores[:, pictures], **extra), value[pictures], atol=1e-13, rtol=0)
    rewards = data.draw(st.permutations(range(len(scores))))
    turned = {key: tensor[rewards] for key, tensor in extra.items()}
    torch.testing.assert_close(FUNCTIONS[name](scores[rewards], **turned), value, atol=1e-13, rtol=0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equal_weights_are_the_default_and_their_scale_is_nothing(name: str) -> None:
    extra = arguments(name, GOLDEN)
    weighted = FUNCTIONS[name](GOLDEN, weights=torch.full((5,), 0.3), **extra)
    torch.testing.assert_close(weighted, FUNCTIONS[name](GOLDEN, **extra))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_weight_of_zero_leaves_a_reward_out(name: str) -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0]], dtype=torch.float64)
    extra = arguments(name, scores)
    weights = torch.tensor([1.0, 0.0, 1.0])
    kept = weights > 0
    without = FUNCTIONS[name](scores[kept], **{key: tensor[kept] for key, tensor in extra.items()})
    weighted = FUNCTIONS[name](scores, weights=weights, **extra)
    torch.testing.assert_close(weighted, without)
    assert not torch.equal(weighted, FUNCTIONS[name](scores, **extra))


def test_win_prob_by_hand() -> None:
    """R = (0, ln 3, 0): odds of 3 to 1 are a probability of 3/4; at T = 1/2 the odds are 9 to 1."""
    row = torch.tensor([[0.0, math.log(3), 0.0]], dtype=torch.float64)
    one = win_prob(row, temperatures=torch.tensor([1.0]))
    torch.testing.assert_close(one.tolist(), [3 / 8, 3 / 4, 3 / 8])
    half = win_prob(row, temperatures=torch.tensor([0.5]))
    torch.testing.assert_close(half.tolist(), [3 / 10, 9 / 10, 3 / 10])
    both = win_prob(row.repeat(2, 1), temperatures=torch.tensor([1.0, 0.5]), weights=torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(both, (one + 3 * half) / 4)


@given(score_tables())
@settings(max_examples=40, deadline=None)
def test_win_prob_in_its_limits(scores: Tensor) -> None:
    """Scores are eighths, so that T = 1/800 makes each untied margin 100 or more; a tie is half a win."""
    r, k = scores.shape
    ties = (scores[:, :, None] == scores[:, None, :]).sum((0, 2)).double() - r
    cold = win_prob(scores, temperatures=torch.full((r,), 1 / 800))
    torch.testing.assert_close(cold, win_count(scores) + ties / (2 * r * (k - 1)), atol=1e-12, rtol=0)
    hot = win_prob(scores, temperatures=torch.full((r,), 1e12))
    torch.testing.assert_close(hot, torch.full((k,), 0.5, dtype=torch.float64), atol=1e-11, rtol=0)
    assert abs(win_prob(scores, temperatures=torch.ones(r)).sum() - k / 2) < 1e-12  # P(i, j) + P(j, i) = 1


def test_win_prob_of_scores_far_apart() -> None:
    extreme = win_prob(torch.tensor([[-1e4, 1e4, 0.0]]), temperatures=torch.tensor([1.0]))
    assert extreme.tolist() == [0.0, 1.0, 0.5]


def test_mean_z_by_hand() -> None:
    scores = torch.tensor([[1.0, 3.0], [20.0, 10.0]])
    mean, std = torch.tensor([2.0, 10.0]), torch.tensor([0.5, 5.0])
    assert mean_z(scores, mean=mean, std=std).tolist() == [0.0, 1.0]  # (-2 + 2) / 2, (2 + 0) / 2
    assert mean_z(scores, mean=mean, std=std, weights=torch.tensor([3.0, 1.0])).tolist() == [-1.0, 1.5]


def fronts(scores: Tensor) -> list[int]:
    """The longest chain of pictures that ends in i and where each beats the next: i's front (Mirsky's theorem)."""
    k = scores.shape[1]
    above = [
        [j for j in range(k) if (scores[:, j] >= scores[:, i]).all() and (scores[:, j] > scores[:, i]).any()]
        for i in range(k)
    ]

    def depth(i: int) -> int:
        return 1 + max((depth(j) for j in above[i]), default=0)

    return [depth(i) for i in range(k)]


@given(score_tables())
@settings(max_examples=60, deadline=None)
def test_pareto_by_brute_force(scores: Tensor) -> None:
    k = scores.shape[1]
    expected = [1 - (front - 1) / (k - 1) for front in fronts(scores)]
    torch.testing.assert_close(pareto(scores).tolist(), expected, atol=1e-15, rtol=0)


def test_pareto_by_hand() -> None:
    """(3, 1) and (1, 3) beat none of each other; (1, 1) loses to both, (0, 0) and its double to all."""
    scores = torch.tensor([[3.0, 1.0, 1.0, 0.0, 0.0], [1.0, 3.0, 1.0, 0.0, 0.0]])
    assert pareto(scores).tolist() == [1.0, 1.0, 0.75, 0.5, 0.5]
    chain = torch.tensor([[2.0, 5.0, 3.0, 4.0]])
    assert torch.equal(pareto(chain), win_count(chain))


def test_ranks_and_their_ties() -> None:
    phi = torch.tensor([0.5, 0.9, 0.5, 0.5], dtype=torch.float64)
    z = torch.tensor([0.1, -3.0, 0.2, 0.1], dtype=torch.float64)
    assert ranks(phi, z, ["b", "z", "c", "a"]).tolist() == [4, 1, 2, 3]
    third = torch.tensor([0.1 + 0.2, 0.3], dtype=torch.float64)  # differ in the last bit only
    assert ranks(third, torch.tensor([0.0, 1.0]), ["a", "b"]).tolist() == [2, 1]


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), st.data())
@settings(max_examples=40, deadline=None)
def test_ranks_do_not_hang_on_the_order(pictures: list[tuple[float, float]], data: st.DataObject) -> None:
    ids = [f"{i:02d}" for i in range(len(pictures))]
    phi, z = (torch.tensor(column, dtype=torch.float64) for column in zip(*pictures, strict=True))
    rank = ranks(phi, z, ids)
    assert sorted(rank.tolist()) == list(range(1, len(ids) + 1))
    for i, j in itertools.permutations(range(len(ids)), 2):
        if phi[i] > phi[j] or (phi[i] == phi[j] and z[i] > z[j]):
            assert rank[i] < rank[j]
    turn = data.draw(st.permutations(range(len(ids))))
    assert ranks(phi[turn], z[turn], [ids[i] for i in turn]).tolist() == rank[turn].tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: win_count(torch.ones(2, 1)), r"two pictures or more can be compared, got \[2, 1\]"),
        (lambda: win_count(torch.tensor([[1.0, math.nan]])), "scores must be finite, got .*nan.*leave out"),
        (lambda: pareto(GOLDEN, weights=torch.zeros(5)), "one of them above 0"),
        (lambda: pareto(GOLDEN, weights=torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0])), "weights must be 0 or above"),
        (lambda: win_prob(GOLDEN, temperatures=torch.zeros(5)), "temperatures must be above 0"),
        (lambda: mean_z(GOLDEN, mean=torch.zeros(5), std=torch.zeros(5)), "std must be above 0.*leave out"),
        (lambda: ranks(torch.ones(2), torch.ones(2), ["a"]), "one id a picture, got 1 for 2"),
        (lambda: ranks(torch.ones(2), torch.ones(2), ["a", "a"]), "ids must be different, got 'a' twice"),
        (lambda: ranks(torch.ones(2), torch.tensor([0.0, math.inf]), ["a", "b"]), "z must be finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
