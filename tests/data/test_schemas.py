"""Every public schema as a real file: prompts, scores, models and the very images; and what bad rows say."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import pytest

from diffpref.data.decode import decode
from diffpref.data.preferences import read_preferences
from diffpref.data.rows import Preferences

IMAGE = datasets.Image()
TEXT, NUMBER = datasets.Value("string"), datasets.Value("float64")


def levels(preferences: Preferences, position: int) -> list[int]:
    """The grey levels of a row's images: which image is which."""
    return [decode(image_bytes).getpixel((0, 0))[0] for image_bytes in preferences[position].images]


def image(data: bytes | None, path: str | None = None) -> dict:
    return {"bytes": data, "path": path}


def test_canonical_pairs_of_image_structs(parquet, image_bytes) -> None:
    columns = {"prompt": [" a cat ", "a dog"]}
    columns |= {
        "chosen": [image(image_bytes(10)), image(image_bytes(11))],
        "rejected": [image(image_bytes(20)), image(image_bytes(21))],
    }
    pairs = read_preferences(parquet(columns, features={"prompt": TEXT, "chosen": IMAGE, "rejected": IMAGE}))
    assert [row.prompt for row in pairs] == ["a cat", "a dog"]
    assert pairs[0].scores == (1.0, 0.0) and levels(pairs, 0) == [10, 20] and levels(pairs, 1) == [11, 21]
    assert pairs[1].where == "pairs.parquet row 1" and pairs.schema == "pairs (chosen, rejected)"
    assert pairs[0].images[0] == image_bytes(10) and pairs[0].models == ()


def test_open_image_preferences_has_models_and_extra_columns(parquet, image_bytes) -> None:
    columns = {
        "id": ["x"],
        "prompt": ["a cat"],
        "chosen": [image_bytes(1)],
        "rejected": [image_bytes(2)],
        "category": ["pets"],
    }
    pairs = read_preferences(parquet(columns | {"chosen_model": ["dev"], "rejected_model": ["sd"]}))
    assert pairs[0].models == ("dev", "sd") and levels(pairs, 0) == [1, 2]


def test_scores_of_pairs(parquet, image_bytes) -> None:
    columns = {"prompt": ["a", "b", "c"], "chosen": [image_bytes(1)] * 3, "rejected": [image_bytes(2)] * 3}
    columns |= {"chosen_score": [0.9, 0.5, None], "rejected_score": [0.2, 0.5, None]}
    pairs = read_preferences(parquet(columns))
    assert list(pairs.scores) == [(0.9, 0.2), (1.0, 0.0)] and pairs.dropped == {"tie": 1}
    columns["rejected_score"] = [0.2, 0.7, None]
    with pytest.raises(ValueError, match=r"pairs2.parquet row 1: chosen_score 0.5 is below rejected_score 0.7: swap"):
        read_preferences(parquet(columns, "pairs2.parquet"))


def test_scored_and_ranked_lists(parquet, image_bytes) -> None:
    images = [[image(image_bytes(10 * i + j)) for j in range(3)] for i in range(2)]
    features = {"prompt": TEXT, "images": datasets.Sequence(IMAGE)}
    columns = {"prompt": ["a", "b"], "images": images}
    scored = parquet(
        columns | {"scores": [[0.1, 0.9, 0.5], [2, 2, 2]]}, features=features | {"scores": datasets.Sequence(NUMBER)}
    )
    lists = read_preferences(scored)
    assert lists[0].scores == (0.1, 0.9, 0.5) and levels(lists, 0) == [0, 1, 2] and lists.dropped == {"tie": 1}
    ranks = {"ranks": [[3, 1, 2], [1, 2, 2]], "models": [["x", "y", "z"], []]}
    more = {"ranks": datasets.Sequence(NUMBER), "models": datasets.Sequence(TEXT)}
    lists = read_preferences(parquet(columns | ranks, "r.parquet", features | more))
    assert list(lists.scores) == [(-3, -1, -2), (-1, -2, -2)] and lists[0].models == ("x", "y", "z")
    assert lists[1].models == () and levels(lists, 1) == [10, 11, 12]


def pickapic(image_bytes, rows: int = 5) -> dict:
    return {
        "caption": [f"prompt {i}" for i in range(rows)],
        "jpg_0": [image_bytes(10 + i) for i in range(rows)],
        "jpg_1": [image_bytes(20 + i) for i in range(rows)],
        "label_0": [1.0, 0.0, 0.5, 1.0, 1.0],
        "label_1": [0.0, 1.0, 0.5, 0.0, 0.0],
        "has_label": [True, True, True, False, True],
        "are_different": [True, True, True, True, False],
        "model_0": ["sdxl"] * rows,
        "model_1": ["dream"] * rows,
        "ranking_id": list(range(rows)),
    }


def test_pick_a_pic(parquet, image_bytes) -> None:
    pairs = read_preferences(parquet(pickapic(image_bytes)))
    assert list(pairs.scores) == [(1.0, 0.0), (0.0, 1.0)] and levels(pairs, 1) == [11, 21]
    assert pairs[1].prompt == "prompt 1" and pairs[0].models == ("sdxl", "dream")
    assert pairs.dropped == {"tie": 1, "no label": 1, "same image": 1}
    assert pairs.summary().splitlines()[1:] == [
        "schema: Pick-a-Pic",
        "read: 5 rows, 2 kept, 3 dropped (1 tie, 1 no label, 1 same image)",
    ]


@pytest.mark.parametrize("second_label", [True, False])
def test_pick_a_pic_as_a_tar(tmp_path: Path, image_bytes, second_label: bool) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for i, label in enumerate(["1.0", "0.0", "0.5"]):
            members = {"jpg_0.jpg": image_bytes(10 + i, kind="JPEG"), "jpg_1.jpg": image_bytes(200 + i, kind="JPEG")}
            members |= {"label_0.txt": label.encode(), "original_prompt.txt": f"prompt {i}".encode()}
            members |= {"label_1.txt": str(1 - float(label)).encode()} if second_label else {}
            for name, data in members.items():
                member = tarfile.TarInfo(f"{i:04}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    pairs = read_preferences(tmp_path / "shard.tar")
    assert [row.prompt for row in pairs] == ["prompt 0", "prompt 1"]
    assert list(pairs.scores) == [(1.0, 0.0), (0.0, 1.0)] and pairs.dropped == {"tie": 1}
    assert levels(pairs, 1) == pytest.approx([11, 201], abs=1) and pairs[0].where == "shard.tar row 0"


def test_hpdv2_train_and_test_with_paths_beside_the_json(json_file, tmp_path: Path, image_bytes) -> None:
    (tmp_path / "images").mkdir()
    for i in range(4):
        (tmp_path / "images" / f"{i}.png").write_bytes(image_bytes(i))
    (tmp_path / "here.png").write_bytes(image_bytes(99))
    train = [
        {"prompt": "a", "file_path": ["0.png", "1.png"], "human_preference": [0, 1]},
        {"prompt": "b", "file_path": ["here.png", "images/2.png"], "human_preference": [1, 0]},
        {"prompt": "c", "file_path": ["0.png", "1.png"], "human_preference": [1, 1]},
    ]
    pairs = read_preferences(json_file(train))
    assert list(pairs.scores) == [(0, 1), (1, 0)] and pairs.schema == "HPDv2 train" and pairs.dropped == {"tie": 1}
    assert levels(pairs, 0) == [0, 1] and levels(pairs, 1) == [99, 2]
    also = [{"prompt": "a", "image_path": ["0.png", "1.png"], "human_preference": [0, 1]}]
    assert read_preferences(json_file(also, "also.json")).schema == "HPDv2 train"
    test = [{"prompt": "a", "image_path": ["0.png", "1.png", "3.png"], "rank": [2, 3, 1], "raw_annotations": []}]
    lists = read_preferences(json_file(test, "test.json"))
    assert lists[0].scores == (-2, -3, -1) and levels(lists, 0) == [0, 1, 3] and lists.schema == "HPDv2 test"


def hpdv3(count: int) -> list[dict]:
    return [
        {"prompt": f"p{i}", "path1": f"good/{i}.png", "path2": f"bad/{i}.png", "model1": "flux", "model2": "sd"}
        for i in range(count)
    ]


def test_hpdv3_sides_carry_no_label(json_file) -> None:
    path = json_file(hpdv3(400))
    pairs = read_preferences(path)
    first = [scores[0] == 1.0 for scores in pairs.scores]
    # A fair coin leaves 200 +- 60 (six standard deviations) with probability 2e-9.
    assert 140 < sum(first) < 260
    for row, better_first in zip(pairs, first, strict=True):
        assert ("good" in str(row.images[0])) == better_first == (row.models == ("flux", "sd"))
    backwards = read_preferences(json_file(hpdv3(400)[::-1], "again.json"))
    assert list(backwards.scores)[::-1] == list(pairs.scores)


def test_hpdv3_confidence(json_file) -> None:
    rows = [row | {"confidence": c} for row, c in zip(hpdv3(4), [0.9, 1.0, 0.5, None], strict=True)]
    pairs = read_preferences(json_file(rows))
    assert [max(scores) for scores in pairs.scores] == [0.9, 1.0, 1.0]
    assert [min(scores) for scores in pairs.scores] == pytest.approx([0.1, 0.0, 0.0])
    assert pairs.dropped == {"confidence at most 0.5": 1}
    assert all("good" in str(row.images[row.scores.index(max(row.scores))]) for row in pairs)
    rows[1]["confidence"] = 1.5
    with pytest.raises(ValueError, match=r"bad.json row 1: confidence must be in \[0, 1\], got 1.5"):
        read_preferences(json_file(rows, "bad.json"))


def test_rapidata_votes_are_shares(parquet, image_bytes) -> None:
    columns = {"prompt": list("abcd"), "image1": [image_bytes(1)] * 4, "image2": [image_bytes(2)] * 4}
    columns |= {"votes_image1": [3, 5, 0, 0], "votes_image2": [1, 5, 0, 4], "model1": ["m"] * 4, "model2": ["n"] * 4}
    pairs = read_preferences(parquet(columns))
    assert list(pairs.scores) == [(0.75, 0.25), (0.0, 1.0)] and pairs.dropped == {"tie": 1, "no votes": 1}
    assert pairs[1].models == ("m", "n") and levels(pairs, 1) == [1, 2]
    columns["votes_image1"] = [3, -5, 0, 0]
    with pytest.raises(ValueError, match="row 1: votes must be 0 or above, got -5 and 5"):
        read_preferences(parquet(columns, "negative.parquet"))


def test_columns_under_other_names(parquet, image_bytes) -> None:
    path = parquet({"my_caption": ["a"], "a": [image_bytes(1)], "b": [image_bytes(2)], "prompt": ["not this"]})
    pairs = read_preferences(path, columns={"prompt": "my_caption", "chosen": "a", "rejected": "b"})
    assert pairs[0].prompt == "a" and levels(pairs, 0) == [1, 2]
    swapped = parquet({"prompt": ["a"], "chosen": [image_bytes(1)], "rejected": [image_bytes(2)]}, "swap.parquet")
    assert levels(read_preferences(swapped, columns={"chosen": "rejected", "rejected": "chosen"}), 0) == [2, 1]
    with pytest.raises(ValueError, match="which also needs rejected"):
        read_preferences(swapped, columns={"chosen": "rejected"})
    with pytest.raises(ValueError, match="--columns chosen=c, but the columns are my_caption, a, b, prompt"):
        read_preferences(path, columns={"chosen": "c"})
    with pytest.raises(ValueError, match="'chosn', which no schema uses; did you mean 'chosen'"):
        read_preferences(path, columns={"chosn": "a"})
    with pytest.raises(ValueError, match="one column twice"):
        read_preferences(path, columns={"chosen": "a", "rejected": "a"})


def test_unknown_columns_list_what_is_known_and_guess(parquet, image_bytes) -> None:
    path = parquet({"prompt": ["a"], "chosen_image": [image_bytes(1)], "rejected": [image_bytes(2)]})
    with pytest.raises(ValueError) as caught:
        read_preferences(path)
    message = str(caught.value)
    assert "pairs.parquet: the columns prompt, chosen_image, rejected match no known schema" in message
    assert "Nearest: pairs (chosen, rejected), which also needs chosen;" in message
    assert "pass --columns chosen=chosen_image." in message
    assert "Pick-a-Pic: caption|original_prompt|prompt, jpg_0, jpg_1, label_0" in message and "HPDv3: " in message


def test_all_ties_are_an_error(parquet, image_bytes) -> None:
    columns = pickapic(image_bytes) | {"label_0": [0.5] * 5, "label_1": [0.5] * 5}
    with pytest.raises(ValueError, match="no usable row among 5 read: 3 tie, 1 no label, 1 same image"):
        read_preferences(parquet(columns))


def test_reading_does_not_touch_the_images(parquet, image_bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffpref.data import tables

    reads = []
    row = tables.Table.row
    monkeypatch.setattr(tables.Table, "row", lambda self, number: reads.append(number) or row(self, number))
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("decoded an image"))
    count = 2500
    columns = {
        "prompt": ["a"] * count,
        "chosen": [image(image_bytes(1))] * count,
        "rejected": [image(image_bytes(2))] * count,
    }
    pairs = read_preferences(parquet(columns, features={"prompt": TEXT, "chosen": IMAGE, "rejected": IMAGE}))
    assert len(pairs) == count and reads == []
    assert pairs[2400].where == "pairs.parquet row 2400" and reads == [2400]
    outlined = next(iter(pairs.read.tables[0].outlines(1)))
    assert outlined["chosen"] == b"?"


def test_json_keeps_odd_columns_out_of_the_way(json_file) -> None:
    rows = [{"prompt": "a", "chosen": "a.png", "rejected": "b.png", "extra": {"k": json.dumps([i])}} for i in range(2)]
    assert len(read_preferences(json_file(rows))) == 2
