"""The embedded lists: the pairs' captions and images, with the reward's scores, through reader and pairing."""

from pathlib import Path

import pytest

from diffpref.data.pairs import as_pairs
from diffpref.data.preferences import read_preferences

ASSETS = Path(__file__).parents[2] / "assets"
LISTS = ASSETS / "emoji-lists" / "train.parquet"
pytestmark = pytest.mark.skipif(not LISTS.is_file(), reason="assets/emoji-lists has not been made")


def test_the_lists_are_the_pairs_captions_and_images() -> None:
    lists, pairs = list(read_preferences(LISTS)), list(read_preferences(ASSETS / "emoji-pairs" / "train.parquet"))
    assert [row.prompt for row in lists] == [row.prompt for row in pairs]
    for listed, pair in zip(lists, pairs, strict=True):
        assert listed.models == ("google", "twitter", "openmoji") and len(listed.images) == 3
        drawn = dict(zip(listed.models, listed.images, strict=True))
        assert tuple(drawn[name] for name in pair.models) == pair.images


def test_scores_come_through_and_prefer_openmoji() -> None:
    lists = read_preferences(LISTS)
    assert lists.schema == "scored lists" and lists.dropped == {} and len(lists) == 293
    assert lists[0].scores == lists.scores[0] and len(set(lists.scores[0])) == 3
    assert sum(scores[2] == max(scores) for scores in lists.scores) > 0.95 * len(lists)


def test_pairs_of_lists_carry_both_scores() -> None:
    lists = read_preferences(LISTS)
    pairs = as_pairs(lists)
    assert len(pairs) + pairs.dropped.get("tie", 0) == 3 * len(lists)
    first = lists[0]
    for pair, (i, j) in zip((pairs[0], pairs[1], pairs[2]), ((0, 1), (0, 2), (1, 2)), strict=True):
        assert pair.scores == (first.scores[i], first.scores[j])
        assert pair.images == (first.images[i], first.images[j])
    assert len(as_pairs(lists, lists="best_worst")) == 293
