"""Prompts alone: a text file, a table or JSON with a prompt column, or the prompts of preference data."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

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
            if suffix == ".tsv":
                raise
            try:
                return _of_preferences(source, split)
            except ValueError:
                raise problem from None
    found = _data_set(source, path, split)
    return _of_preferences(source, split) if found is None else found


class _NoColumn(ValueError):
    """No column of prompts by name, though preference data may have one under another."""


def _file(path: Path, suffix: str) -> list[str]:
    if suffix == ".txt":
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    if suffix in (".tsv", ".csv"):
        return _separated(path, tab=suffix == ".tsv")
    return _parquet(path) if suffix == ".parquet" else _json(path, lines=suffix == ".jsonl")


def _of_preferences(source: str, split: str) -> list[str]:
    from diffpref.data.sources import read_preferences

    return [row.prompt.strip() for row in read_preferences(source, split=split)]


def _column_of(names: Sequence[str], where: object) -> str:
    """The name of the column of prompts."""
    lower = {name.lower(): name for name in reversed(names)}
    for name in COLUMNS:
        if name in lower:
            return lower[name]
    raise _NoColumn(f"{where} has no column {', '.join(COLUMNS)}; it has {', '.join(names)}.")


def _text(value: object, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: a prompt must be text, got {type(value).__name__} {value!r:.80}.")
    return value.strip()


def _separated(path: Path, *, tab: bool) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        # Quotes are part of the text in tab-separated prompt lists such as PartiPrompts.
        form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tab else {}
        rows = csv.DictReader(file, **form)
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


def _data_set(source: str, path: Path, split: str) -> list[str] | None:
    """The prompts of a data set of `datasets` with a column of them, or None where that is not what the source is."""
    import datasets

    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        found = datasets.load_from_disk(str(path))
        if isinstance(found, datasets.DatasetDict):
            if split not in found:
                raise ValueError(f"{source} has no split {split!r}; it has {', '.join(map(str, found))}.")
            found = found[split]
    elif path.exists() or source.count("/") != 1 or source.startswith("."):
        return None
    else:
        try:
            found = datasets.load_dataset(source, split=split)
        except Exception:  # the hub, the network and builders raise their own; the reader of preferences says which
            return None
    names = {name.lower() for name in found.column_names}
    if not names & set(COLUMNS):
        return None
    name = _column_of(found.column_names, source)
    return [_text(cell, f"{source} row {i}") for i, cell in enumerate(found.select_columns([name])[name])]
