"""Rows and pairs that nobody prefers: left out and counted, or kept; and prompts without their images."""

from pathlib import Path

import pytest

from diffpref.data.pairs import as_pairs
from diffpref.data.preferences import read_preferences


def pick_a_pic(parquet, image_bytes) -> Path:
    columns = {"caption": ["a", " b ", "c", "d"], "jpg_0": [image_bytes(1)] * 4, "jpg_1": [image_bytes(2)] * 4}
    columns |= {"label_0": [1.0, 0.5, 0.0, 0.5], "label_1": [0.0, 0.5, 1.0, 0.5], "has_label": [True] * 3 + [False]}
    return parquet(columns)


def test_ties_are_dropped_or_kept(parquet, image_bytes) -> None:
    source = pick_a_pic(parquet, image_bytes)
    assert list(read_preferences(source).scores) == [(1, 0), (0, 1)]
    kept = read_preferences(source, ties="keep")
    assert list(kept.scores) == [(1, 0), (0.5, 0.5), (0, 1)] and kept.dropped == {"no label": 1}
    assert kept[1].prompt == "b" and kept[1].scores == (0.5, 0.5) and as_pairs(kept, ties="keep") is kept


@pytest.mark.parametrize(
    ("columns", "scores"),
    [
        ({"chosen_score": [0.5], "rejected_score": [0.5]}, (0.5, 0.5)),
        ({"votes_image1": [3], "votes_image2": [3]}, (0.5, 0.5)),
    ],
)
def test_ties_of_other_schemas(parquet, image_bytes, columns, scores) -> None:
    names = ("chosen", "rejected") if "chosen_score" in columns else ("image1", "image2")
    source = parquet({"prompt": ["a"], names[0]: [image_bytes(1)], names[1]: [image_bytes(2)], **columns})
    assert list(read_preferences(source, ties="keep").scores) == [scores]
    with pytest.raises(ValueError, match="no usable row among 1 read: 1 tie"):
        read_preferences(source)


def test_ties_of_lists(parquet, image_bytes) -> None:
    images = [image_bytes(i) for i in range(3)]
    source = parquet({"prompt": ["a", "b"], "images": [images] * 2, "scores": [[2.0, 1.0, 2.0], [1.0, 1.0, 1.0]]})
    assert len(read_preferences(source)) == 1
    lists = read_preferences(source, ties="keep")
    assert list(as_pairs(lists).scores) == [(2, 1), (1, 2)] and as_pairs(lists).dropped == {"tie": 4}
    pairs = as_pairs(lists, ties="keep")
    assert list(pairs.scores) == [(2, 1), (2, 2), (1, 2), (1, 1), (1, 1), (1, 1)] and not pairs.dropped
    assert pairs[1].images == (images[0], images[2]) and pairs[5].where.endswith("row 1 pictures 1 and 2")
    assert [pairs.prompt(i) for i in range(6)] == ["a"] * 3 + ["b"] * 3
    assert list(as_pairs(lists, lists="best_worst", ties="keep").scores) == [(2, 1), (1, 1)]


def test_prompts_are_those_of_the_rows(parquet, image_bytes, tmp_path: Path) -> None:
    kept = read_preferences(pick_a_pic(parquet, image_bytes), ties="keep")
    assert [kept.prompt(i) for i in range(3)] == [row.prompt for row in kept] == ["a", "b", "c"]
    some = kept.subset([2, 0], dropped={}, step="chosen")
    assert [some.prompt(i) for i in range(2)] == ["c", "a"]
    absent = {"prompt": ["a"], "chosen": [str(tmp_path / "x.png")], "rejected": [str(tmp_path / "y.png")]}
    paths = read_preferences(parquet(absent, "paths.parquet"))
    assert paths.prompt(0) == "a"
