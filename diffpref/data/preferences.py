"""Preference data by its name: opened, its schema found, its rows read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffpref.data.rows import OnBadRow, Preferences, Ties, check_choices

if TYPE_CHECKING:
    from diffpref.data.open import OpenTable


def read_preferences(
    source: str | Path,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    on_bad_row: OnBadRow = "error",
    max_rows: int | None = None,
    revision: str | None = None,
    ties: Ties = "drop",
) -> Preferences:
    """The rows of a file, a folder or a hub data set, in whichever known schema it has.

    Args:
        source: a .parquet, .json, .jsonl, .csv or .tar file; a folder of one kind of these; a folder with `w/` and
            `l/` (or `chosen/` and `rejected/`); a folder that `diffpref label-pairs` asked about; one written by
            `datasets.save_to_disk`; else a name on the hub.
        columns: the schema's name of a column -> the source's, where they differ: {"prompt": "my_caption"}.
        on_bad_row: "skip" leaves out rows that cannot be used, and counts them by reason.
        max_rows: how many rows are looked at, from the start; ties count.
        revision: the commit, branch or tag of a hub data set.
        ties: "drop" leaves out rows whose scores are all equal, and counts them; "keep" keeps them.

    Raises:
        ValueError: nothing found, no known schema, a bad row, or no row left.
    """
    check_choices(on_bad_row=on_bad_row, ties=ties, max_rows=max_rows)
    from diffpref.data.answers import holds_answers, read_answers
    from diffpref.data.folders import pair_folders, read_folders
    from diffpref.data.open import open_tables

    path = Path(source).expanduser()
    folders = pair_folders(path)
    answers = folders is None and holds_answers(path)
    if folders is None and not answers:
        opened = open_tables(source, split=split, revision=revision)
        return preferences_in(
            opened, str(source), columns=columns or {}, on_bad_row=on_bad_row, max_rows=max_rows, ties=ties
        )
    for name, value in (("split", None if split == "train" else split), ("columns", columns), ("revision", revision)):
        if value:
            what = "a folder of answers" if answers else "a pair of folders"
            raise ValueError(f"{source} is {what}, for which {name} {value!r} means nothing: leave it out.")
    if folders is None:
        return read_answers(path, on_bad_row=on_bad_row, max_rows=max_rows, ties=ties)
    return read_folders(path, folders, on_bad_row=on_bad_row, max_rows=max_rows)


def preferences_in(
    opened: Sequence["OpenTable"],
    source: str,
    *,
    columns: Mapping[str, str],
    on_bad_row: OnBadRow,
    max_rows: int | None,
    ties: Ties,
) -> Preferences:
    """The rows of tables that are open already; the arguments are those of `read_preferences`.

    Raises:
        ValueError: no known schema, a bad row, or no row left.
    """
    from diffpref.data.detect import detect
    from diffpref.data.tables import read_tables, table_of

    tables = [table_of(table, *detect(table.columns, overrides=columns, source=table.where)) for table in opened]
    return read_tables(source, tables, on_bad_row=on_bad_row, max_rows=max_rows, ties=ties)
