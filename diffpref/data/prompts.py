"""Prompts alone: a text file, a table or JSON with a prompt column, or the prompts of preference data."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffpref.data.detect import find_schema
from diffpref.data.preferences import preferences_in, read_preferences
from diffpref.data.rows import Preferences

if TYPE_CHECKING:
    from diffpref.data.open import OpenTable

COLUMNS = ("prompt", "caption", "text")
"""Names of a column of prompts in any case; the first of them that a source has is read."""
_FILES = (".txt", ".tsv", ".csv", ".json", ".jsonl")


def read_prompts(source: str, *, split: str = "train", limit: int | None = None) -> list[str]:
    """The unique prompts of a source in order; `prompt_rows` says what a source is.

    Raises:
        ValueError: nothing there, no prompt in it, or no column of prompts.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"max_train_samples must be 1 or above, got {limit}; leave it out to read all prompts.")
    prompts = list(dict.fromkeys(prompt for prompt in prompt_rows(source, split=split) if prompt))[:limit]
    if not prompts:
        raise ValueError(f"{source} holds no prompt: give one a line in a .txt file.")
    return prompts


def prompt_rows(source: str, *, split: str = "train") -> list[str]:
    """The prompt of every row of a source in order, without spaces around it; "" where a row has none.

    Args:
        source: a .txt with one prompt a line; a .tsv, .csv, .parquet, .jsonl or .json (a list of texts or objects)
            with a column of `COLUMNS`; a data set of `datasets` with one, saved or on the hub; else preference data,
            whose rows without a preference are left out.

    Raises:
        ValueError: nothing there, a file that cannot be read, or no column of prompts.
    """
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if suffix in _FILES or (suffix == ".parquet" and not path.is_dir()):
        if not path.is_file():
            raise ValueError(f"{source} does not exist: check the path.")
        if split != "train":
            raise ValueError(f"{source} has no splits, but split {split!r} was asked for: leave split out.")
        try:
            return _file(path, suffix)
        except (csv.Error, UnicodeDecodeError) as problem:
            raise ValueError(f"{source} cannot be read as {suffix[1:]}: {problem}. Save it as UTF-8 text.") from problem
        except _NoColumn as problem:
            if suffix == ".tsv" or find_schema(problem.columns) is None:
                raise
            return _of_preferences(read_preferences(source))
    from diffpref.data.open import is_saved, open_tables

    if path.exists() and not is_saved(path):
        return _of_preferences(read_preferences(source, split=split))
    opened = open_tables(source, split=split)
    prompts = _of_tables(opened, source)
    if prompts is None:
        prompts = _of_preferences(
            preferences_in(opened, source, columns={}, on_bad_row="error", max_rows=None, ties="drop")
        )
    return prompts


class _NoColumn(ValueError):
    """No column of prompts by name, though preference data may have one under another."""

    def __init__(self, where: object, columns: Sequence[str]) -> None:
        super().__init__(f"{where} has no column {', '.join(COLUMNS)}; it has {', '.join(columns)}.")
        self.columns = columns


def _file(path: Path, suffix: str) -> list[str]:
    if suffix == ".txt":
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    if suffix in (".tsv", ".csv"):
        return _separated(path, tab=suffix == ".tsv")
    return _parquet(path) if suffix == ".parquet" else _json(path, lines=suffix == ".jsonl")


def _of_preferences(preferences: Preferences) -> list[str]:
    return [preferences.prompt(position).strip() for position in range(len(preferences))]


def _prompt_column(names: Sequence[str]) -> str | None:
    """The name of the column of prompts, if there is one."""
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in COLUMNS if name in lower), None)


def _column_of(names: Sequence[str], where: object) -> str:
    name = _prompt_column(names)
    if name is None:
        raise _NoColumn(where, names)
    return name


def _text(value: object, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: a prompt must be text, got {type(value).__name__} {value!r:.80}.")
    return value.strip()


def _separated(path: Path, *, tab: bool) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        # Quotes are part of the text in tab-separated prompt lists such as PartiPrompts.
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tab else csv.DictReader(file)
        name = _column_of(rows.fieldnames or (), path)
        return [(row[name] or "").strip() for row in rows]


def _json(path: Path, *, lines: bool) -> list[str]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = None if lines else json.loads(text)
    except ValueError:
        rows = None  # JSON lines under the name .json
    if rows is None:
        rows = [_line(line, f"{path} line {i}") for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if isinstance(rows, dict):  # one JSON object: a column of prompts, or a file of one line
        cells = rows[_column_of(list(rows), path)]
        rows = cells if isinstance(cells, list) else [rows]
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a list of prompts or of objects with one, got {type(rows).__name__}.")
    first = next((row for row in rows if isinstance(row, dict)), {})
    name = _column_of(list(first), path) if first else ""
    return [_text(row.get(name) if isinstance(row, dict) else row, f"{path} entry {i}") for i, row in enumerate(rows)]


def _line(line: str, where: str) -> object:
    try:
        return json.loads(line)
    except ValueError as problem:
        raise ValueError(f"{where} is no JSON: {problem}.") from None


def _parquet(path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        name = _column_of(pq.read_schema(path).names, path)
        cells = pq.read_table(path, columns=[name]).column(0).to_pylist()
    except pa.ArrowInvalid as problem:
        raise ValueError(f"{path} cannot be read as parquet: {problem}") from None
    return [_text(cell, f"{path} row {i}") for i, cell in enumerate(cells)]


def _of_tables(opened: Sequence["OpenTable"], source: str) -> list[str] | None:
    """The prompts of tables that all have a column of them, else None."""
    prompts: list[str] = []
    for table in opened:
        name = _prompt_column(table.columns)
        if name is None:
            return None
        cells = table.dataset.select_columns([name])[name]
        prompts += [_text(cell, f"{source} row {i}") for i, cell in enumerate(cells)]
    return prompts
