"""Rows that cannot be used: each is named with its remedy, or left out whole and counted."""

from pathlib import Path

import datasets
import pytest

from diffpref.data.decode import decode
from diffpref.data.preferences import read_preferences

BAD_LISTS = [
    ({"prompt": ""}, "empty caption", "prompt is empty: write a caption"),
    ({"prompt": "  \n"}, "empty caption", "prompt is empty"),
    ({"prompt": None}, "empty caption", "prompt is empty"),
    ({"images": None}, "not a list", "images must be a list, got NoneType"),
    ({"images": ["a.png"]}, "lengths differ", "images has 1 entries and scores 2"),
    ({"images": ["a.png"], "scores": [1.0]}, "single image", "at least two"),
    ({"images": ["a.png", None]}, "no image", "image 1 is empty: give its bytes or its path"),
    ({"images": ["a.png", ""]}, "no image", "image 1 is empty"),
    ({"images": ["a.png", "https://x.org/b.png"]}, "image is a URL", "https://x.org/b.png: download it"),
    ({"scores": [1.0, None]}, "missing score", r"scores\[1\] is missing: fill it in"),
    ({"scores": [float("nan"), 1.0]}, "score not finite", r"scores\[0\] must be a finite number, got nan"),
    ({"scores": [float("inf"), 1.0]}, "score not finite", "must be a finite number, got inf"),
    ({"models": ["x"]}, "lengths differ", "models must name the model of each of the 2 images"),
]


@pytest.mark.parametrize(("change", "reason", "message"), BAD_LISTS)
def test_a_bad_row_is_named_or_counted(json_file, change: dict, reason: str, message: str) -> None:
    good = {"prompt": "a", "images": ["a.png", "b.png"], "scores": [1.0, 2.0], "models": ["x", "y"]}
    path = json_file([good, good | change, good], "lists.jsonl")
    with pytest.raises(ValueError, match=rf"lists.jsonl row 1: .*{message}.*--on_bad_row skip"):
        read_preferences(path)
    kept = read_preferences(path, on_bad_row="skip")
    assert kept.dropped == {reason: 1} and [row.where for row in kept] == ["lists.jsonl row 0", "lists.jsonl row 2"]


BAD_TYPES = [
    ({"prompt": 3}, "caption is no text", "prompt must be text, got int 3"),
    ({"chosen": 3}, "image of a wrong type", "image 0 must be bytes, a path or {bytes, path}, got int"),
    (
        {"chosen_score": "good", "rejected_score": "bad"},
        "score is no number",
        "chosen_score must be a number, got 'good'",
    ),
    ({"chosen_score": 1.0}, "missing score", "rejected_score is missing"),
]


@pytest.mark.parametrize(("change", "reason", "message"), BAD_TYPES)
def test_a_wrong_type_is_named(json_file, change: dict, reason: str, message: str) -> None:
    path = json_file([{"prompt": "a", "chosen": "a.png", "rejected": "b.png"} | change])
    with pytest.raises(ValueError) as caught:
        read_preferences(path)
    assert message in str(caught.value) and "train.json row 0" in str(caught.value)
    with pytest.raises(ValueError, match=f"no usable row among 1 read: 1 {reason}"):
        read_preferences(path, on_bad_row="skip")


def test_empty_bytes_are_no_image(parquet, image_bytes) -> None:
    features = {"prompt": datasets.Value("string"), "chosen": datasets.Value("binary"), "rejected": datasets.Image()}
    rows = {"prompt": ["a", "b", "c"], "chosen": [b"", image_bytes(1), image_bytes(1)]}
    path = parquet(
        rows | {"rejected": [{"bytes": image_bytes(2), "path": None}, None, {"bytes": image_bytes(3), "path": None}]},
        features=features,
    )
    kept = read_preferences(path, on_bad_row="skip")
    assert kept.dropped == {"no image": 2} and [decode(p).getpixel((0, 0))[0] for p in kept[0].images] == [1, 3]


def test_captions_that_look_like_missing_values_survive_csv(tmp_path: Path) -> None:
    text = "prompt,chosen,rejected\nNone,a.png,b.png\n007,c.png,d.png\n"
    (tmp_path / "pairs.csv").write_text(text)
    assert [row.prompt for row in read_preferences(tmp_path / "pairs.csv")] == ["None", "007"]
    (tmp_path / "empty.csv").write_text(text + ",e.png,f.png\n")
    with pytest.raises(ValueError, match="empty.csv row 2: prompt is empty"):
        read_preferences(tmp_path / "empty.csv")
