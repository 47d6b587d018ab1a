"""The one door to a data set: a failure is tried once and told once, with its reason, whoever asks."""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path

import datasets
import pytest

from diffpref.data.images import read_images
from diffpref.data.open import open_tables
from diffpref.data.preferences import read_preferences
from diffpref.data.prompts import prompt_rows


@pytest.mark.parametrize("read", [read_preferences, read_images, prompt_rows])
def test_the_hub_is_asked_once_and_its_answer_is_told(read: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(name: str, **options: object) -> datasets.Dataset:
        asked.append(name)
        raise ConnectionError("the proxy refused")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ValueError, match=r"owner/pairs is neither .*ConnectionError: the proxy refused.*the network"):
        read("owner/pairs")
    assert asked == ["owner/pairs"]


@pytest.mark.parametrize("read", [read_images, prompt_rows])
def test_preferences_of_the_hub_are_loaded_once(
    read: Callable[..., Iterable[object]], image_bytes: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither images with captions nor prompts: the same tables are read as preferences."""
    asked: list[str] = []
    columns = {"original_prompt": ["a dog"], "jpg_0": [image_bytes(1)], "jpg_1": [image_bytes(2)], "label_0": [1.0]}

    def load(name: str, **options: object) -> datasets.Dataset:
        asked.append(name)
        return datasets.Dataset.from_dict(columns)

    monkeypatch.setattr(datasets, "load_dataset", load)
    (row,) = read("owner/pairs")
    assert getattr(row, "prompt", row) == "a dog" and asked == ["owner/pairs"]


def test_where_a_table_lies(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("a.csv", "more/b.csv"):
        (tmp_path / name).write_text("prompt\nNA\n")
    tables = open_tables(tmp_path, split="train")
    assert [(table.where, table.folder) for table in tables] == [
        ("a.csv", tmp_path),
        ("more/b.csv", tmp_path / "more"),
    ]
    assert tables[0].columns == ["prompt"] and tables[0].dataset[0]["prompt"] == "NA"


def test_a_bad_row_of_preferences_is_told_by_the_reader_of_prompts(tmp_path: Path) -> None:
    """The file has no column of prompts by name, which is not what is wrong with it."""
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="") as file:
        rows = csv.DictWriter(file, ["original_prompt", "jpg_0", "jpg_1", "label_0"])
        rows.writeheader()
        rows.writerow({"original_prompt": "a dog", "jpg_0": "a.png", "jpg_1": "b.png", "label_0": "much"})
    with pytest.raises(ValueError, match="pairs.csv row 0: label_0 must be a number, got 'much'"):
        prompt_rows(str(path))
