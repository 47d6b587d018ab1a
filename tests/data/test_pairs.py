"""Lists turned into pairs; and that a collection can be sent to another process."""

import pickle
from pathlib import Path

from diffpref.data.pairs import as_pairs
from diffpref.data.preferences import read_preferences


def lists(json_file, scores: list[list[float]]) -> Path:
    names = ["a.png", "b.png", "c.png", "d.png"]
    rows = [
        {"prompt": f"p{i}", "images": names[: len(s)], "scores": s, "models": names[: len(s)]}
        for i, s in enumerate(scores)
    ]
    return json_file(rows, "lists.jsonl")


def test_lists_become_all_pairs(json_file) -> None:
    rows = read_preferences(lists(json_file, [[3.0, 1.0, 3.0], [1.0, 2.0], [5.0, 5.0]]))
    split = as_pairs(rows)
    assert list(split.scores) == [(3, 1), (1, 3), (1, 2)] == [row.scores for row in split]
    assert [[p.name for p in row.images if isinstance(p, Path)] for row in split] == [
        ["a.png", "b.png"],
        ["b.png", "c.png"],
        ["a.png", "b.png"],
    ]
    assert split[1].where == "lists.jsonl row 0 pictures 1 and 2" and split[1].models == ("b.png", "c.png")
    assert split[2].where == "lists.jsonl row 1" and split[1].prompt == "p0"
    assert split.dropped == {"tie": 2} and split.summary().endswith("pairs: 3 from 2 rows, 1 dropped (1 tie)")
    assert as_pairs(split) is split


def test_lists_become_their_extremes(json_file) -> None:
    rows = read_preferences(lists(json_file, [[2.0, 4.0, 1.0, 4.0], [0.0, 0.0, 7.0]]))
    split = as_pairs(rows, lists="best_worst")
    assert [row.scores for row in split] == [(4, 1), (0, 7)] and split.dropped == {}
    assert split[0].where.endswith("pictures 1 and 2") and split[1].where.endswith("pictures 0 and 2")


def test_a_collection_reaches_a_spawned_loader(json_file) -> None:
    split = as_pairs(read_preferences(lists(json_file, [[3.0, 1.0, 2.0]])))
    assert list(pickle.loads(pickle.dumps(split))) == list(split)
