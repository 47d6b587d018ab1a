"""Prompts alone: a text file, a table with a prompt column, or the prompts of preference data."""

import csv
from pathlib import Path

COLUMNS = ("prompt", "caption", "text")


def read_prompts(source: str, *, split: str = "train", limit: int | None = None) -> list[str]:
    """The unique prompts of a source in order: one a line of a .txt, a column of a .tsv, or of any preference data.

    Raises:
        ValueError: nothing there, no prompt in it, or no column of prompts.
    """
    path = Path(source).expanduser()
    if limit is not None and limit < 1:
        raise ValueError(f"max_train_samples must be 1 or above, got {limit}; leave it out to read all prompts.")
    if path.suffix in (".txt", ".tsv") and not path.is_file():
        raise ValueError(f"{source} does not exist: check the path.")
    if path.suffix == ".txt":
        found = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    elif path.suffix == ".tsv":
        found = _column(path)
    else:
        from diffpref.data.sources import read_preferences

        found = [row.prompt for row in read_preferences(source, split=split)]
    prompts = list(dict.fromkeys(prompt for prompt in found if prompt))[:limit]
    if not prompts:
        raise ValueError(f"{source} holds no prompt: give one a line in a .txt file.")
    return prompts


def _column(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        name = next((name for name in rows.fieldnames or () if name.lower() in COLUMNS), None)
        if name is None:
            raise ValueError(f"{path} has no column {', '.join(COLUMNS)}; it has {', '.join(rows.fieldnames or ())}.")
        return [(row[name] or "").strip() for row in rows]
