"""How far two rewards agree: Kendall's tau-b against scipy and against a loop over all pairs."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpref.rewards.aggregate import PairCounts, kendall_tau_b, pair_counts

# Eighths are exact in floating point, and few, so that ties are common.
numbers = st.integers(-4, 4).map(lambda i: i / 8)


def test_tau_b_is_scipys() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    for n in (2, 5, 40):
        a, b = torch.randint(0, 6, (2, n), generator=generator).double()
        b = a + b
        expected = scipy_stats.kendalltau(a.numpy(), b.numpy(), variant="b").statistic
        assert math.isclose(kendall_tau_b(a, b), expected, abs_tol=1e-12)


@given(st.lists(st.tuples(st.integers(0, 2), numbers, numbers), max_size=12))
@settings(max_examples=60, deadline=None)
def test_tau_b_within_groups_by_a_loop(pictures: list[tuple[int, float, float]]) -> None:
    agreement = untied_a = untied_b = 0
    for (group, a, b), (other, c, d) in itertools.combinations(pictures, 2):
        if group == other:
            agreement += (1 if (a > c) == (b > d) else -1) if a != c and b != d else 0
            untied_a += a != c
            untied_b += b != d
    groups = torch.tensor([g for g, _, _ in pictures], dtype=torch.int64)
    a, b = (torch.tensor([p[i] for p in pictures], dtype=torch.float64) for i in (1, 2))
    assert pair_counts(a, b, groups=groups) == PairCounts(agreement, untied_a, untied_b)
    tau = kendall_tau_b(a, b, groups=groups)
    if untied_a and untied_b:
        assert math.isclose(tau, agreement / math.sqrt(untied_a * untied_b), abs_tol=1e-12)
    else:
        assert math.isnan(tau)


def test_counts_of_parts_add_up() -> None:
    a, b = torch.randn(2, 12, generator=torch.Generator().manual_seed(1))
    groups = torch.arange(12) // 4
    parts = [pair_counts(a[s], b[s], groups=groups[s]) for s in (slice(0, 4), slice(4, 12))]
    assert parts[0] + parts[1] == pair_counts(a, b, groups=groups)
    assert pair_counts(a, a, groups=groups) == PairCounts(18, 18, 18)  # 3 groups of 6 pairs


def test_a_score_that_is_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="b must be finite"):
        kendall_tau_b(torch.ones(2), torch.tensor([0.0, math.nan]))
