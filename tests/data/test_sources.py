"""Files, folders, saved data sets and the hub; lists turned into pairs."""

import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest

from diffpref.data.decode import decode
from diffpref.data.preferences import read_preferences


def pairs(image_bytes, start: int = 0, count: int = 2) -> dict:
    numbers = range(start, start + count)
    return {
        "prompt": [f"p{i}" for i in numbers],
        "chosen": [image_bytes(i) for i in numbers],
        "rejected": [image_bytes(100 + i) for i in numbers],
    }


def test_a_directory_of_shards_keeps_file_and_row(parquet, image_bytes, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    parquet(pairs(image_bytes), "data/train-00000-of-00002.parquet")
    parquet(pairs(image_bytes, 2, 3), "data/train-00001-of-00002.parquet")
    parquet(pairs(image_bytes, 9, 1), "data/validation-00000-of-00001.parquet")
    rows = read_preferences(tmp_path)
    assert [row.prompt for row in rows] == ["p0", "p1", "p2", "p3", "p4"]
    assert rows[3].where == "data/train-00001-of-00002.parquet row 1"
    assert decode(rows[3].images[1]).getpixel((0, 0)) == (103, 103, 103)
    assert [row.prompt for row in read_preferences(tmp_path, split="validation")] == ["p9"]
    assert [row.prompt for row in read_preferences(tmp_path, max_rows=3)] == ["p0", "p1", "p2"]
    with pytest.raises(ValueError, match="no file of split 'test'; by their names it has train, validation"):
        read_preferences(tmp_path, split="test")


def test_a_directory_must_be_clear(parquet, json_file, image_bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds neither data files .* nor folders w/ and l/"):
        read_preferences(tmp_path)
    parquet(pairs(image_bytes), "a.parquet")
    with pytest.raises(ValueError, match="has no splits, but split 'test' was asked for"):
        read_preferences(tmp_path, split="test")
    json_file([{"prompt": "a"}], "b.json")
    with pytest.raises(ValueError, match=r"several kinds \(json, parquet\): name the file"):
        read_preferences(tmp_path)


def test_saved_data_sets(tmp_path: Path, image_bytes) -> None:
    image = datasets.Image()
    columns = pairs(image_bytes, count=3)
    columns |= {side: [{"bytes": b, "path": None} for b in columns[side]] for side in ("chosen", "rejected")}
    features = datasets.Features({"prompt": datasets.Value("string"), "chosen": image, "rejected": image})
    data = datasets.Dataset.from_dict(columns, features=features)
    data.save_to_disk(tmp_path / "one")
    # A selection keeps an index into the table: rows must follow it.
    datasets.DatasetDict({"train": data, "test": data.select([2, 0])}).save_to_disk(tmp_path / "two")
    assert [row.prompt for row in read_preferences(tmp_path / "one")] == ["p0", "p1", "p2"]
    rows = read_preferences(tmp_path / "two", split="test")
    assert [row.prompt for row in rows] == ["p2", "p0"] and rows[0].where == "two[test] row 0"
    assert decode(rows[0].images[0]).getpixel((0, 0)) == (2, 2, 2)
    with pytest.raises(ValueError, match="has no split 'dev'; it has train, test"):
        read_preferences(tmp_path / "two", split="dev")
    with pytest.raises(ValueError, match="has no splits, but split 'test'"):
        read_preferences(tmp_path / "one", split="test")


def test_what_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in ("nothing.parquet", "nothing", str(tmp_path / "x" / "y"), "./a/b", "data/pairs.parquet"):
        with pytest.raises(
            ValueError, match=r"does not exist: there is no .* Check the path \(a hub data set is named OWNER/NAME\)"
        ):
            read_preferences(missing)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = r"nobody/pairs is neither a local path nor a hub data set that can be reached .*Check the spelling"
    with pytest.raises(ValueError, match=message):
        read_preferences("nobody/pairs")


def test_the_hub_is_asked_for_split_and_revision(image_bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load(name: str, **options: object) -> datasets.Dataset:
        calls.append((name, options))
        return datasets.Dataset.from_dict(pairs(image_bytes))

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = read_preferences("owner/pairs", split="validation", revision="v2")
    assert calls == [("owner/pairs", {"split": "validation", "revision": "v2"})]
    assert rows[1].where == "owner/pairs[validation] row 1" and rows[1].prompt == "p1"


def test_files_that_cannot_be_read(tmp_path: Path, parquet, image_bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"a.parquet cannot be read as parquet: ArrowInvalid"):
        read_preferences(tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text("[{")
    with pytest.raises(ValueError, match=r"a.json cannot be read as json"):
        read_preferences(tmp_path / "a.json")
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(ValueError, match=r"a.xlsx is no file that can be read: the suffix must be one of .parquet"):
        read_preferences(tmp_path / "a.xlsx")
    good = parquet(pairs(image_bytes))
    for options, message in (
        ({"split": "test"}, "has no splits"),
        ({"revision": "main"}, "is a local path, revision 'main' is for hub"),
        ({"max_rows": 0}, "max_rows must be 1 or above"),
    ):
        with pytest.raises(ValueError, match=message):
            read_preferences(good, **options)


def test_choices_are_checked_where_types_are_not() -> None:
    """Under pytest the annotations already refuse these values; in an ordinary run the message must do it."""
    program = """
from diffpref.data import Preferences, as_pairs, check_rows, read_preferences
one = Preferences(source="s", schema="t", read=list().__getitem__, index=[0], scores=[(1.0, 0.0)], dropped={})
for call in (
    lambda: as_pairs(one, lists="some"),
    lambda: check_rows(one, size_mismatch="pad"),
    lambda: check_rows(one, on_bad_row="drop"),
    lambda: read_preferences("x", on_bad_row="drop"),
):
    try:
        call()
    except ValueError as problem:
        print(problem)
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [
        'lists must be "all" or "best_worst", got \'some\'.',
        'size_mismatch must be "error" or "crop", got \'pad\'.',
        'on_bad_row must be "error" or "skip", got \'drop\'.',
        'on_bad_row must be "error" or "skip", got \'drop\'.',
    ]
