"""Prompts alone, from text, tables and preference data."""

from pathlib import Path

import pytest

from diffpref.data.prompts import read_prompts
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
