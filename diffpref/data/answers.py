"""The answers of people on the local page as preference data: a folder with pairs.json and labels.json."""

from pathlib import Path

from diffpref.data.bad_row import BadRow
from diffpref.data.rows import Dropped, OnBadRow, Preferences, Row, Ties, in_memory
from diffpref.people.pairs import PAIRS, label_files, read_labels, read_pairs


def holds_answers(folder: Path) -> bool:
    """Whether `diffpref label-pairs`, or a run with `labels: person`, wrote the folder."""
    return (folder / PAIRS).is_file()


def read_answers(folder: Path, *, on_bad_row: OnBadRow, max_rows: int | None, ties: Ties) -> Preferences:
    """One row for each pair that somebody answered; the scores are the shares of the answers for each image.

    Raises:
        ValueError: no answer yet, files that cannot be read, or a pair without a caption (with on_bad_row="error").
    """
    pairs, means = read_pairs(folder)[:max_rows], read_labels(folder)
    if not means:
        raise ValueError(f"{folder} has pairs and no answers yet: compare them with `diffpref label-pairs {folder}`.")
    rows: list[Row] = []
    dropped = Dropped(on_bad_row)
    for pair in pairs:
        mean, where = means.get(pair.id), f"{folder.name}/{PAIRS} pair {pair.id}"
        if mean is None or (mean == 0 and ties == "drop"):
            dropped.counts["no answer" if mean is None else "tie"] += 1
        elif not pair.prompt.strip():
            dropped.bad(where, BadRow("empty caption", f"the prompt is empty: write it in {PAIRS}."))
        elif pair.changed(folder):
            dropped.bad(where, BadRow("image changed", "an image is not the one that was compared: put it back."))
        else:
            images = (folder / pair.images[0], folder / pair.images[1])
            scores = ((1 + mean) / 2, (1 - mean) / 2)
            rows.append(Row(prompt=pair.prompt.strip(), images=images, scores=scores, where=where))
    files = label_files(folder)
    return in_memory(
        str(folder), f"answers of people ({', '.join(file.name for file in files)})", rows, dropped=dropped
    )
