"""Writes preferences as one parquet file, in our own columns or in those of Pick-a-Pic."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diffpref.data.rows import Picture, Preferences, Row
from diffpref.data.sources import as_pairs
from diffpref.files import atomic

if TYPE_CHECKING:
    import pyarrow as pa

# A row group holds at most this many rows and about this many bytes of pictures.
_ROWS, _BYTES = 256, 64 * 2**20


def _bytes(picture: Picture, row: Row) -> bytes:
    if isinstance(picture, bytes):
        return picture
    try:
        return picture.read_bytes()
    except OSError as problem:
        raise ValueError(f"{row.where}: {picture} cannot be read ({problem.strerror}): restore the file.") from None


def _image(picture: Picture, row: Row) -> dict[str, object]:
    return {"bytes": _bytes(picture, row), "path": picture.name if isinstance(picture, Path) else None}


def _best_first(row: Row) -> list[int]:
    return sorted(range(len(row.scores)), key=lambda i: -row.scores[i])


def _pair(row: Row) -> dict[str, object]:
    better, worse = _best_first(row)
    return {
        "prompt": row.prompt,
        "chosen": _image(row.pictures[better], row),
        "rejected": _image(row.pictures[worse], row),
        "chosen_score": row.scores[better],
        "rejected_score": row.scores[worse],
        "chosen_model": row.models[better] if row.models else None,
        "rejected_model": row.models[worse] if row.models else None,
    }


def _list(row: Row) -> dict[str, object]:
    return {
        "prompt": row.prompt,
        "images": [_image(picture, row) for picture in row.pictures],
        "scores": list(row.scores),
        "models": list(row.models),
    }


def _pickapic(row: Row) -> dict[str, object]:
    first = row.scores[0] > row.scores[1]
    return {
        "caption": row.prompt,
        "jpg_0": _bytes(row.pictures[0], row),
        "jpg_1": _bytes(row.pictures[1], row),
        "label_0": float(first),
        "label_1": float(not first),
        "has_label": True,
        "are_different": True,
        "model_0": row.models[0] if row.models else None,
        "model_1": row.models[1] if row.models else None,
    }


RECORDS: Mapping[str, Callable[[Row], dict[str, object]]] = {"pairs": _pair, "lists": _list, "pickapic": _pickapic}
"""A form of training data -> what makes its record of a row; pairs and pickapic take rows of two pictures."""


def schema_of(form: str, more: Mapping[str, object] | None = None) -> "pa.Schema":
    """The Arrow columns of a form's records, with the features of `datasets` in their metadata.

    Args:
        more: further columns, as features of `datasets`.
    """
    import datasets

    text, number, image = datasets.Value("string"), datasets.Value("float64"), datasets.Image()
    flag, data = datasets.Value("bool"), datasets.Value("binary")
    if form == "pickapic":
        columns = {"caption": text, "jpg_0": data, "jpg_1": data, "label_0": number, "label_1": number}
        columns |= {"has_label": flag, "are_different": flag, "model_0": text, "model_1": text}
    elif form == "pairs":
        columns = {"prompt": text, "chosen": image, "rejected": image, "chosen_score": number, "rejected_score": number}
        columns |= {"chosen_model": text, "rejected_model": text}
    else:
        # Sequence is the name that every supported version of datasets knows.
        columns = {"prompt": text, "images": datasets.Sequence(image)}
        columns |= {"scores": datasets.Sequence(number), "models": datasets.Sequence(text)}
    return datasets.Features({**columns, **(more or {})}).arrow_schema


def _batches(preferences: Preferences, record: Callable[[Row], dict[str, object]]) -> Iterator[list[dict[str, object]]]:
    batch: list[dict[str, object]] = []
    size = 0
    for row in preferences:
        batch.append(record(row))
        size += sum(len(p) if isinstance(p, bytes) else p.stat().st_size for p in row.pictures)
        if len(batch) == _ROWS or size > _BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def write_parquet(
    preferences: Preferences, path: Path, *, to: Literal["canonical", "pickapic"] = "canonical"
) -> Preferences:
    """Replaces `path` by a parquet file of all rows, at once when it is complete; returns the rows written.

    Args:
        to: "canonical" writes pairs (prompt, chosen, rejected, their scores and models) or, if any row has more than
            two pictures, lists (prompt, images, scores, models); "pickapic" writes every pair of a list, ties left out.

    Raises:
        ValueError: an unknown format, or a picture file that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if to not in ("canonical", "pickapic"):
        raise ValueError(f'to must be "canonical" or "pickapic", got {to!r}.')
    if to == "pickapic":
        preferences, form = as_pairs(preferences), "pickapic"
    else:
        form = "pairs" if all(len(scores) == 2 for scores in preferences.scores) else "lists"
    record, schema = RECORDS[form], schema_of(form)
    with atomic.replacing(path) as part, pq.ParquetWriter(part, schema) as writer:
        for batch in _batches(preferences, record):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    return preferences
