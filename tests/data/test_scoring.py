"""What methods need of their data, and rewards as scores."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from diffpref.data.pairs import as_pairs
from diffpref.data.preferences import read_preferences
from diffpref.data.rows import Preferences, Row, in_memory
from diffpref.data.scoring import MinMax, score, win_fractions
from diffpref.errors import Errors
from diffpref.objectives import D3PO, DDO, DPO, RankDPO, SmPO
from diffpref.types import Objective


def preferences(*scores: tuple[float, ...]) -> Preferences:
    """Rows of images that do not exist: scoring must not open them."""
    rows = [
        Row(
            prompt=f"prompt {i}",
            images=tuple(Path(f"absent/{i}-{j}.png") for j in range(len(values))),
            scores=values,
            where=f"file row {i}",
        )
        for i, values in enumerate(scores)
    ]
    return in_memory("mine.parquet", "scored lists", rows)


def scores_of(rows: Preferences) -> list[tuple[float, ...]]:
    """The scores, which reading the rows must give as well."""
    assert [row.scores for row in rows] == list(rows.scores)
    return list(rows.scores)


@pytest.mark.parametrize("objective", [DPO(), D3PO()])
def test_labels_pass_through(objective: Objective) -> None:
    rows = preferences((1.0, 0.0), (0.0, 1.0))
    assert score(rows, objective) is rows


def test_rewards_are_scaled_over_the_whole_data_set() -> None:
    """Fixed numbers, also negative and of one kind: (s - min) / (max - min)."""
    rows = score(preferences((11.0, 31.0), (16.0, 21.0)), SmPO())
    assert scores_of(rows) == [(0.0, 1.0), (0.25, 0.5)]
    assert rows.log[-1] == "scores: rewards 11 to 31 scaled to [0, 1]" and rows.log[-1] in rows.summary()
    assert scores_of(score(preferences((-2.0, -4.0), (-3.0, -2.0)), SmPO())) == [(1.0, 0.0), (0.5, 1.0)]


def test_ties_are_dropped_and_counted_but_belong_to_the_range() -> None:
    rows = score(preferences((1.0, 3.0), (5.0, 5.0), (3.0, 2.0)), SmPO())
    assert scores_of(rows) == [(0.0, 0.5), (0.5, 0.25)]
    assert rows.dropped == {"tie": 1} and [row.where for row in rows] == ["file row 0", "file row 2"]
    assert "scores: 3 rows, 2 kept, 1 dropped (1 tie)" in rows.log
    assert score(preferences((1.0, 0.0), (0.5, 0.5)), DPO()).dropped == {"tie": 1}


def test_rewards_of_zero_and_one_are_no_labels() -> None:
    """A reward may be 0 or 1; what labels cannot have is a row where both are 1."""
    assert scores_of(score(preferences((1.0, 0.0), (1.0, 1.0), (0.0, 1.0)), SmPO())) == [(1.0, 0.0), (0.0, 1.0)]


def test_scaled_scores_stay_in_the_unit_interval() -> None:
    """SmPO refuses anything else; 0.1 and 0.7 have no exact float."""
    for low, high in ((0.1, 0.7), (-1e30, 1e30), (1e-20, 3e-20)):
        rows = score(preferences((low, high), (low + (high - low) / 3, low)), SmPO())
        given = torch.tensor(scores_of(rows))
        errors = Errors(torch.zeros(2, 2), torch.zeros(2, 2))
        torch.testing.assert_close(SmPO()(errors, given), torch.full((2,), math.log(2)))


def test_win_fractions_are_those_of_the_paper() -> None:
    assert win_fractions((0.3, 0.9, 0.1)) == (0.5, 1.0, 0.0)
    assert win_fractions((2.0, 2.0, 1.0, 5.0)) == (1 / 3, 1 / 3, 0.0, 1.0)
    assert win_fractions((7.0, 8.0)) == (0.0, 1.0)


def test_lists_get_win_fractions() -> None:
    rows = score(preferences((0.3, 0.9, 0.1), (4.0, 4.0, 4.0), (1.0, 1.0, 0.0)), RankDPO())
    assert scores_of(rows) == [(0.5, 1.0, 0.0), (0.5, 0.5, 0.0)]
    assert rows.dropped == {"tie": 1} and rows.log[-1].startswith("scores: the share of the others")
    RankDPO()(Errors(torch.zeros(2, 3), torch.zeros(2, 3)), torch.tensor(rows.scores))


def test_nothing_is_read() -> None:
    numbers: list[int] = []

    def read(number: int) -> Row:
        numbers.append(number)
        return rows.read(number)

    rows = preferences((1.0, 3.0, 2.0), (5.0, 5.0, 5.0), (3.0, 2.0, 1.0))
    spied = replace(rows, read=read)
    scored = score(spied, RankDPO())
    assert not numbers
    assert scored[1].scores == (1.0, 0.5, 0.0) and numbers == [2]


def test_pairs_of_a_file_with_scores(parquet: Callable[..., Path], image_bytes: Callable[..., bytes]) -> None:
    """Through reader, pairing and scoring: a list of three is three pairs, scaled together."""
    images = [[image_bytes(level) for level in (0, 9, 90)]]
    rows = read_preferences(parquet({"prompt": ["a"], "images": images, "scores": [[1.0, 5.0, 2.0]]}))
    paired = score(as_pairs(rows), SmPO())
    assert scores_of(paired) == [(0.0, 1.0), (0.0, 0.25), (1.0, 0.25)]
    assert paired[2].images == (images[0][1], images[0][2])


def test_real_images_have_equal_scores_and_need_none() -> None:
    rows = preferences((1.0,), (1.0,))
    assert score(rows, DDO()) is rows


class Strange(DPO):
    candidates = "triples"


class Odd(DPO):
    scaling = "softmax"


LABELS = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]


@pytest.mark.parametrize(
    ("objective", "scores", "message"),
    [
        (SmPO(), LABELS, "SmPO needs a reward for each image, these rows hold only which is better.*objective: dpo"),
        (RankDPO(), LABELS, r"mine.parquet: RankDPO ranks lists of three or more.*have pairs.*dpo \(or smpo"),
        (RankDPO(), [(1.0,)], "these rows have one image"),
        (
            RankDPO(),
            [(1.0, 2.0, 3.0)] * 3 + [(1.0, 2.0, 3.0, 4.0)] * 2,
            r"3 rows of 3 images and 2 of 4 \(the first is file row 3\): split the data",
        ),
        (RankDPO(), [(1.0, 2.0)] + [(1.0, 2.0, 3.0, 4.0)] * 2, "2 rows of 4 images and 1 of 2"),
        (DPO(), [(2.0, 2.0), (1.0, 1.0)], "there is no preference in the data, each of its 2 rows.*DPO"),
        (SmPO(), [(0.5, 0.5)], "no preference"),
        (RankDPO(), [(2.0, 2.0, 2.0)], "no preference"),
        (DPO(), [(1.0, 0.0), (1.0, math.nan)], "file row 1: image 1 has the score nan"),
        (SmPO(), [(math.inf, 0.0)], "file row 0: image 0 has the score inf"),
        (DPO(), [(1e39, 0.0)], "float32's range"),
        (Strange(), LABELS, "Strange.candidates must be one of pairs, lists, chain_pairs, real_fake, got 'triples'"),
        (Odd(), LABELS, "Odd.scaling must be one of none, min_max, win_fraction, got 'softmax'"),
    ],
)
def test_data_that_a_method_cannot_use(objective: Objective, scores: Sequence[tuple[float, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(preferences(*scores), objective)


def test_min_max_ends() -> None:
    assert MinMax(-1.0, 3.0)((-1.0, 3.0, 0.0)) == (0.0, 1.0, 0.25)


def test_given_scores_are_taken_as_they_are() -> None:
    """Phi of several reward models says more than an order."""
    phi = ((1.0, 0.75, 0.2), (0.05, 0.5, 0.9))
    assert scores_of(score(preferences(*phi), RankDPO(), given="scores")) == list(phi)
    with pytest.raises(ValueError, match="given_scores: rewards"):
        score(preferences((3.0, 0.75, 0.2)), RankDPO(), given="scores")


REWARDS = st.lists(st.integers(-50, 50).map(float), min_size=2, max_size=8).map(tuple)


@given(REWARDS)
def test_win_fractions_are_ranks_from_below(rewards: tuple[float, ...]) -> None:
    """Another computation: how many lie before the first equal one in the sorted list."""
    ordered = sorted(rewards)
    assert win_fractions(rewards) == tuple(bisect_left(ordered, reward) / (len(rewards) - 1) for reward in rewards)


@given(st.lists(REWARDS, min_size=1, max_size=5), st.floats(0.1, 10), st.floats(-5, 5))
def test_min_max_keeps_ratios_of_differences(rows: list[tuple[float, ...]], scale: float, shift: float) -> None:
    """(s - t) / (s' - t') is what rewards had, whatever their unit and origin; the ends are 0 and 1."""
    values = [value for row in rows for value in row]
    assume(max(values) > min(values))
    found = [score for row in rows for score in MinMax(min(values), max(values))(row)]
    assert min(found) == 0 and max(found) == 1
    moved = [scale * value + shift for value in values]
    again = MinMax(min(moved), max(moved))(tuple(moved))
    assert found == pytest.approx(again, abs=1e-9)
    assert found == pytest.approx([np.interp(value, [min(values), max(values)], [0, 1]) for value in values])
