"""Where preference data comes from: files, folders, saved data sets, the hub; and lists turned into pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from diffpref.data.rows import Preferences, Row, count_dropped


def read_preferences(
    source: str | Path,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    max_rows: int | None = None,
    revision: str | None = None,
    ties: Literal["drop", "keep"] = "drop",
) -> Preferences:
    """The rows of a file, a folder or a hub data set, in whichever known schema it has.

    Args:
        source: a .parquet, .json, .jsonl, .csv or .tar file; a folder of one kind of these; a folder with `w/` and
            `l/` (or `chosen/` and `rejected/`); a folder written by `datasets.save_to_disk`; else a name on the hub.
        columns: the schema's name of a column -> the source's, where they differ: {"prompt": "my_caption"}.
        on_bad_row: "skip" leaves out rows that cannot be used, and counts them by reason.
        max_rows: how many rows are looked at, from the start; ties count.
        revision: the commit, branch or tag of a hub data set.
        ties: "drop" leaves out rows whose scores are all equal, and counts them; "keep" keeps them.

    Raises:
        ValueError: nothing found, no known schema, a bad row, or no row left.
    """
    if on_bad_row not in ("error", "skip"):
        raise ValueError(f'on_bad_row must be "error" or "skip", got {on_bad_row!r}.')
    if ties not in ("drop", "keep"):
        raise ValueError(f'ties must be "drop" or "keep", got {ties!r}.')
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows must be 1 or above, got {max_rows}; leave it out to read all rows.")
    from diffpref.data.files import find
    from diffpref.data.folders import pair_folders, read_folders
    from diffpref.data.tables import read_tables

    path = Path(source).expanduser()
    folders = pair_folders(path)
    if folders is None:
        tables = find(str(source), split=split, columns=columns or {}, revision=revision)
        return read_tables(str(source), tables, on_bad_row=on_bad_row, max_rows=max_rows, ties=ties)
    for name, value in (("split", None if split == "train" else split), ("columns", columns), ("revision", revision)):
        if value:
            raise ValueError(f"{source} is a pair of folders, for which {name} {value!r} means nothing: leave it out.")
    return read_folders(path, folders, on_bad_row=on_bad_row, max_rows=max_rows)


@dataclass(frozen=True)
class _PairReader:
    lists: Preferences
    triples: np.ndarray
    """(position of the list, first picture, second picture) of each pair."""

    def __call__(self, number: int) -> Row:
        position, *pair = (int(n) for n in self.triples[number])
        row = self.lists[position]
        if len(row.pictures) == 2:
            return row
        return Row(
            row.prompt,
            tuple(row.pictures[i] for i in pair),
            tuple(row.scores[i] for i in pair),
            f"{row.where} pictures {pair[0]} and {pair[1]}",
            tuple(row.models[i] for i in pair) if row.models else (),
        )

    def prompt(self, number: int) -> str:
        return self.lists.prompt(int(self.triples[number][0]))


def as_pairs(
    preferences: Preferences,
    *,
    lists: Literal["all", "best_worst"] = "all",
    ties: Literal["drop", "keep"] = "drop",
) -> Preferences:
    """Rows of two pictures in the order of the list (the scores say which is better); pairs pass through.

    Args:
        lists: "all" compares every two pictures of a list, "best_worst" its extremes only.
        ties: "drop" leaves out pairs of equal scores from lists, and counts them; "keep" keeps them.
    """
    if lists not in ("all", "best_worst"):
        raise ValueError(f'lists must be "all" or "best_worst", got {lists!r}.')
    if all(len(scores) == 2 for scores in preferences.scores):
        return preferences
    triples: list[tuple[int, int, int]] = []
    tied = 0
    for position, scores in enumerate(preferences.scores):
        pairs = _pairs_of(scores, lists)
        kept = [(i, j) for i, j in pairs if ties == "keep" or scores[i] != scores[j]]
        triples += [(position, i, j) for i, j in kept]
        tied += len(pairs) - len(kept)
    counted = {"tie": tied} if tied else {}
    read = _PairReader(preferences, np.array(triples, dtype=np.int32).reshape(-1, 3))
    return Preferences(
        preferences.source,
        preferences.schema,
        read,
        range(len(triples)),
        [(preferences.scores[p][i], preferences.scores[p][j]) for p, i, j in triples],
        {**preferences.dropped, **({"tie": preferences.dropped.get("tie", 0) + tied} if tied else {})},
        (*preferences.log, f"pairs: {len(triples)} from {len(preferences)} rows{count_dropped(counted)}"),
        read.prompt,
    )


def _pairs_of(scores: Sequence[float], lists: str) -> list[tuple[int, int]]:
    if lists == "best_worst":
        best, worst = scores.index(max(scores)), scores.index(min(scores))
        return [(min(best, worst), max(best, worst))]
    return [(i, j) for i in range(len(scores)) for j in range(i + 1, len(scores))]
