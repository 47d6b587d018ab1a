"""The run's figures against numbers worked out by hand, and the alarm's threshold from both sides."""

import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpref.training.health import COLUMNS, drop, effective_share, pair_table, summarize
from diffpref.types import Errors

BETA = 10.0
# Worked by hand at beta 10; reward = 10 * (reference - policy) / 2.
#          policy            reference      scores    t     rewards chosen, rejected   margin
# pair 0   1.0   2.0         1.25  1.75     1, 0      0.1    1.25, -1.25                 2.5
# pair 1   2.0   3.0         2.0   2.0      0, 1      0.9   -5.0 (second), 0 (first)    -5
# pair 2   0.5   1.5         1.25  0.75     5, 1      0.95   3.75, -3.75                 7.5
# Binary fractions, so the expected values are exact in float32.
POLICY = torch.tensor([[1.0, 2.0], [2.0, 3.0], [0.5, 1.5]])
REFERENCE = torch.tensor([[1.25, 1.75], [2.0, 2.0], [1.25, 0.75]])
SCORES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 1.0]])
LOSS = torch.tensor([0.25, 5.0, 0.75])
T = torch.tensor([0.1, 0.9, 0.95])


def table() -> torch.Tensor:
    return pair_table(Errors(POLICY, REFERENCE), SCORES, LOSS, T, BETA)


def share(*rewards: float) -> float:
    """exp(entropy) / n of weights in proportion to exp(reward), with nothing of torch."""
    weights = [math.exp(reward) / sum(map(math.exp, rewards)) for reward in rewards]
    return math.prod(weight**-weight for weight in weights) / len(rewards)


def test_pair_table_by_hand() -> None:
    expected = {
        "loss": [0.25, 5.0, 0.75],
        "chosen": [1.25, -5.0, 3.75],
        "rejected": [-1.25, 0.0, -3.75],
        "chosen_policy": [1.0, 3.0, 0.5],
        "chosen_reference": [1.25, 2.0, 1.25],
        "rejected_policy": [2.0, 2.0, 1.5],
        "rejected_reference": [1.75, 2.0, 0.75],
        "t": [0.1, 0.9, 0.95],
    }
    assert set(expected) == set(COLUMNS)
    torch.testing.assert_close(table(), torch.tensor([expected[name] for name in COLUMNS]).T, rtol=0, atol=0)


def test_pair_table_keeps_no_graph() -> None:
    policy = POLICY.clone().requires_grad_()
    errors = Errors(policy, REFERENCE)
    rows = pair_table(errors, SCORES, errors.log_ratio.sum(1), T, BETA)
    assert not rows.requires_grad and rows.dtype == torch.float32


def test_summary_by_hand() -> None:
    metrics = summarize(table())
    expected = {
        "loss": 2.0,
        "rewards/chosen": 0.0,
        "rewards/rejected": -5 / 3,
        "rewards/margins": 5 / 3,
        "rewards/accuracies": 2 / 3,
        # |-5| is at the threshold, not above it; 7.5 alone is.
        "saturated": 1 / 3,
        # Between -5, 2.5 and 7.5 at places 0.2, 1 and 1.8.
        "margins/p10": -3.5,
        "margins/p50": 2.5,
        "margins/p90": 6.5,
        "error/chosen/policy": 1.5,
        "error/chosen/reference": 1.5,
        "error/chosen/ratio": 1.0,
        "error/rejected/policy": 5.5 / 3,
        "error/rejected/reference": 1.5,
        "error/rejected/ratio": 5.5 / 4.5,
        # Both right, none and a half, both right.
        "rewards/discrimination": 4.5 / 6,
        # Chosen errors do not move and rejected ones do: 2/9 over the least move that counts, 0.001.
        "drop": 2 / 9 / 1e-3,
        "rewards/effective_share/chosen": share(1.25, -5.0, 3.75),
        "rewards/effective_share/rejected": share(-1.25, 0.0, -3.75),
        "accuracy/t_000_249": 1.0,
        "rewards/chosen/t_000_249": 1.25,
        "rewards/rejected/t_000_249": -1.25,
        "error/chosen/ratio/t_000_249": 1 / 1.25,
        "error/rejected/ratio/t_000_249": 2 / 1.75,
        # Pairs 1 and 2: the ratio of the means, not the mean of the ratios.
        "accuracy/t_750_999": 0.5,
        "rewards/chosen/t_750_999": -0.625,
        "rewards/rejected/t_750_999": -1.875,
        "error/chosen/ratio/t_750_999": 3.5 / 3.25,
        "error/rejected/ratio/t_750_999": 3.5 / 2.75,
    }
    assert metrics == pytest.approx(expected, rel=1e-12), "no bucket without pairs, and no other key"


def test_a_list_of_three_is_best_against_worst() -> None:
    errors = Errors(torch.tensor([[0.5, 1.0, 2.0]]), torch.tensor([[1.0, 1.0, 1.5]]))
    rows = pair_table(errors, torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([1.0]), torch.tensor([0.5]), 2.0)
    chosen, rejected = COLUMNS.index("chosen"), COLUMNS.index("rejected")
    assert (rows[0, chosen], rows[0, rejected]) == (0.0, 0.5)
    rows = pair_table(errors, torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([1.0]), torch.tensor([0.5]), 2.0)
    assert (rows[0, chosen], rows[0, rejected]) == (0.5, -0.5)


@pytest.mark.parametrize("k", [2, 3])
def test_policy_equal_to_reference_is_a_coin_toss(k: int) -> None:
    errors = torch.rand(5, k, generator=torch.Generator().manual_seed(0)) + 0.5
    scores = torch.arange(float(k)).expand(5, k)
    metrics = summarize(pair_table(Errors(errors, errors), scores, torch.full((5,), 0.6931), torch.rand(5), 5000.0))
    assert metrics["rewards/accuracies"] == 0.5 and metrics["rewards/margins"] == 0 and metrics["saturated"] == 0
    assert metrics["error/chosen/ratio"] == metrics["error/rejected/ratio"] == 1


def test_ties_count_half() -> None:
    # Equal scores leave no best and worst: margin 0, whatever the models say. The other pair is right.
    errors = Errors(torch.tensor([[1.0, 9.0], [1.0, 2.0]]), torch.tensor([[4.0, 1.0], [1.5, 1.5]]))
    scores = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    metrics = summarize(pair_table(errors, scores, torch.ones(2), torch.tensor([0.3, 0.3]), BETA))
    assert metrics["rewards/accuracies"] == 0.75 and metrics["accuracy/t_250_499"] == 0.75


@pytest.mark.parametrize(
    ("t", "bucket"),
    [
        (0.0, "000_249"),
        (0.249, "000_249"),
        (0.25, "250_499"),
        (0.499, "250_499"),
        (0.5, "500_749"),
        (0.75, "750_999"),
        (0.999, "750_999"),
        (1.0, "750_999"),
    ],
)
def test_buckets_of_noise(t: float, bucket: str) -> None:
    rows = pair_table(Errors(POLICY[:1], REFERENCE[:1]), SCORES[:1], LOSS[:1], torch.tensor([t]), BETA)
    assert [name for name in summarize(rows) if name.startswith("accuracy/")] == [f"accuracy/t_{bucket}"]


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(8)), st.integers(1, 7), st.integers(0, 10**6))
def test_the_summary_knows_neither_batches_nor_their_order(order: list[int], cut: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    policy, reference = (torch.rand(8, 2, generator=draw) + 0.5 for _ in range(2))
    scores, loss, t = (torch.rand(*shape, generator=draw) for shape in ((8, 2), (8,), (8,)))

    def rows(places: list[int]) -> torch.Tensor:
        return pair_table(Errors(policy[places], reference[places]), scores[places], loss[places], t[places], BETA)

    whole, parts = summarize(rows(list(range(8)))), summarize(torch.cat([rows(order[:cut]), rows(order[cut:])]))
    # A mean in float64 over another order of rows differs in its last bits.
    assert parts == pytest.approx(whole, rel=1e-12, abs=1e-12)


def test_discrimination_counts_real_above_and_fake_below_zero() -> None:
    reference = torch.full((4, 2), 1.0)
    # log-ratios of real and fake: right, right; right, wrong; wrong, wrong; none.
    log_ratio = torch.tensor([[0.1, -0.1], [0.1, 0.2], [-0.1, 0.3], [0.0, 0.0]])
    errors = Errors(policy=reference - 2 * log_ratio, reference=reference)
    table = pair_table(errors, torch.tensor([[1.0, 0.0]] * 4), torch.zeros(4), torch.zeros(4), 1.0)
    assert summarize(table)["rewards/discrimination"] == (1 + 0.5 + 0 + 0.5) / 4


@pytest.mark.parametrize(("spread", "expected"), [(0.5, 0.8825), (1.0, 0.6065), (2.0, 0.1353)])
def test_the_effective_share_of_normal_rewards_is_the_closed_form(spread: float, expected: float) -> None:
    # At evenly spaced quantiles: the tail beyond the last one, which weighs exp(reward), costs up to 1 %.
    quantiles = [NormalDist(3.0, spread).inv_cdf((place + 0.5) / 200_000) for place in range(200_000)]
    found = float(effective_share(torch.tensor(quantiles, dtype=torch.float64)))
    assert found == pytest.approx(expected, rel=1.5e-2) and expected == pytest.approx(
        math.exp(-(spread**2) / 2), abs=1e-4
    )


def test_one_image_that_carries_the_update_is_a_share_of_one() -> None:
    assert float(effective_share(torch.tensor([0.0] * 9 + [50.0], dtype=torch.float64))) == pytest.approx(0.1)
    assert float(effective_share(torch.full((9,), -3.0))) == pytest.approx(1.0)


def test_the_drop_tells_a_fall_of_rejected_images_from_a_gain_of_chosen_ones() -> None:
    assert drop(1.0, 1.0) == 0
    assert drop(1.02, 1.3) == pytest.approx(15) and drop(0.8, 1.02) == pytest.approx(0.1)
