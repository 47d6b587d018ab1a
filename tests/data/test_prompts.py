"""Prompts alone, from text, tables and preference data."""

from pathlib import Path

import datasets
import pytest

from diffpref.data.prompts import prompt_rows, read_prompts
from tests.small_sdxl import PROMPTS, save_pairs


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_text_file(tmp_path: Path) -> None:
    source = written(tmp_path / "p.txt", "\ufeffa fox\n\n  two cats \na fox\nnaïve café")
    assert read_prompts(source) == ["a fox", "two cats", "naïve café"]
    assert read_prompts(source, limit=2) == ["a fox", "two cats"]


def test_a_table(tmp_path: Path) -> None:
    text = 'Prompt\tCategory\n"a sign" that says no\tSigns\na cat\n\tNone\nshort'
    assert read_prompts(written(tmp_path / "p.tsv", text)) == ['"a sign" that says no', "a cat", "short"]
    # A row that ends before the column of prompts holds none.
    text = "id\tcaption\n1\ta dog\n2\n3\ta fox\n"
    assert read_prompts(written(tmp_path / "q.tsv", text)) == ["a dog", "a fox"]


def test_json_and_separated_values(tmp_path: Path) -> None:
    lines = '{"tag": 1, "prompt": "a fox"}\n\n{"prompt": null}\n{"tag": 2}\n{"prompt": " two\u2028cats "}\n'
    for name in ("p.jsonl", "p.json"):
        assert prompt_rows(written(tmp_path / name, lines)) == ["a fox", "", "", "two\u2028cats"]
    assert prompt_rows(written(tmp_path / "q.json", '["a fox", "", "a fox"]')) == ["a fox", "", "a fox"]
    assert prompt_rows(written(tmp_path / "r.json", '{"Caption": ["x", "y"]}')) == ["x", "y"]
    text = 'id,text,prompt\n1,no,"a fox, red"\n2,no,\n3,no,"a ""sign"""\n'
    assert prompt_rows(written(tmp_path / "p.csv", text)) == ["a fox, red", "", 'a "sign"']


def test_tables_and_saved_data_sets(tmp_path: Path) -> None:
    found = datasets.Dataset.from_dict({"Prompt": ["a fox", None, "a fox"], "n": [1, 2, 3]})
    found.to_parquet(str(tmp_path / "p.parquet"))
    found.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"test": found}).save_to_disk(str(tmp_path / "splits"))
    assert prompt_rows(str(tmp_path / "p.parquet")) == prompt_rows(str(tmp_path / "one")) == ["a fox", "", "a fox"]
    assert prompt_rows(str(tmp_path / "splits"), split="test") == ["a fox", "", "a fox"]
    with pytest.raises(ValueError, match="no split 'train'; it has test"):
        prompt_rows(str(tmp_path / "splits"))
    # Preference data with its prompts under a name of its schema only.
    pairs = {"original_prompt": ["a dog"], "jpg_0": [b"x"], "jpg_1": [b"y"], "label_0": [1.0]}
    datasets.Dataset.from_dict(pairs).to_parquet(str(tmp_path / "pick.parquet"))
    assert prompt_rows(str(tmp_path / "pick.parquet")) == ["a dog"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{oops', "p.jsonl line 2 is no JSON"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": 3}', "entry 1: a prompt must be text, got int 3"),
        ("p.json", "3", "must hold a list of prompts"),
        ("p.json", '[{"id": 3}]', "no column prompt, caption, text; it has id"),
        ("p.csv", "a,b\n1,2\n", "no column prompt, caption, text; it has a, b"),
        ("p.csv", 'prompt\n"' + "x" * 140_000 + '"\n', "cannot be read as csv"),
        ("p.parquet", "no parquet", "cannot be read as parquet"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompt_rows(written(tmp_path / name, text))
    with pytest.raises(ValueError, match="has no splits"):
        prompt_rows(str(tmp_path / name), split="test")


def test_preference_data(tmp_path: Path) -> None:
    assert read_prompts(str(save_pairs(tmp_path / "pairs"))) == list(PROMPTS)


@pytest.mark.parametrize(
    ("name", "text", "limit", "message"),
    [
        ("p.txt", "\n \n", None, "holds no prompt"),
        ("p.tsv", "prompt\n", None, "holds no prompt"),
        ("p.tsv", "id\tkind\n1\t2\n", None, "no column prompt, caption, text; it has id, kind"),
        ("p.tsv", "", None, "no column"),
        ("p.txt", "a\n", 0, "max_train_samples must be 1 or above, got 0"),
    ],
)
def test_nothing_there_is_named(tmp_path: Path, name: str, text: str, limit: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_prompts(written(tmp_path / name, text), limit=limit)
    with pytest.raises(ValueError, match="does not exist"):
        read_prompts(str(tmp_path / "absent.tsv"))
