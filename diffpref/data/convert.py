"""Writes preferences as one parquet file, in our own columns or in those of Pick-a-Pic."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from diffpref.data.decode import ImageSource
from diffpref.data.pairs import as_pairs
from diffpref.data.rows import Preferences, Row
from diffpref.files import atomic

if TYPE_CHECKING:
    import pyarrow as pa

# A row group holds at most this many rows and about this many bytes of images.
_ROWS, _BYTES = 256, 64 * 2**20


def _bytes(source: ImageSource, row: Row) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as problem:
        raise ValueError(f"{row.where}: {source} cannot be read ({problem.strerror}): restore the file.") from None


def _image(source: ImageSource, row: Row) -> dict[str, object]:
    return {"bytes": _bytes(source, row), "path": source.name if isinstance(source, Path) else None}


def _best_first(row: Row) -> list[int]:
    return sorted(range(len(row.scores)), key=lambda i: -row.scores[i])


def _pair(row: Row) -> dict[str, object]:
    better, worse = _best_first(row)
    return {
        "prompt": row.prompt,
        "chosen": _image(row.images[better], row),
        "rejected": _image(row.images[worse], row),
        "chosen_score": row.scores[better],
        "rejected_score": row.scores[worse],
        "chosen_model": row.models[better] if row.models else None,
        "rejected_model": row.models[worse] if row.models else None,
    }


def _list(row: Row) -> dict[str, object]:
    return {
        "prompt": row.prompt,
        "images": [_image(source, row) for source in row.images],
        "scores": list(row.scores),
        "models": list(row.models),
    }


def _pickapic(row: Row) -> dict[str, object]:
    first = row.scores[0] > row.scores[1]
    return {
        "caption": row.prompt,
        "jpg_0": _bytes(row.images[0], row),
        "jpg_1": _bytes(row.images[1], row),
        "label_0": float(first),
        "label_1": float(not first),
        "has_label": True,
        "are_different": True,
        "model_0": row.models[0] if row.models else None,
        "model_1": row.models[1] if row.models else None,
    }


@dataclass(frozen=True, kw_only=True)
class RecordForm:
    """A form of training data in a parquet file."""

    record: Callable[[Row], dict[str, object]]
    """The record of a row; pairs and pickapic take rows of two images."""
    columns: Mapping[str, str]
    """Each column -> what its cells hold, a name of `_features`."""

    def schema(self, more: Mapping[str, object] | None = None) -> "pa.Schema":
        """The Arrow columns of the records, with the features of `datasets` in their metadata.

        Args:
            more: further columns, as features of `datasets`.
        """
        import datasets

        features = _features()
        known = {column: features[content] for column, content in self.columns.items()}
        return datasets.Features({**known, **(more or {})}).arrow_schema


def _features() -> dict[str, object]:
    """What a cell can hold, as features of `datasets`."""
    import datasets

    text, number, image = datasets.Value("string"), datasets.Value("float64"), datasets.Image()
    # Sequence is the name that every supported version of datasets knows.
    lists = {"texts": text, "numbers": number, "images": image}
    return {
        **{"text": text, "number": number, "image": image},
        **{"flag": datasets.Value("bool"), "bytes": datasets.Value("binary")},
        **{name: datasets.Sequence(feature) for name, feature in lists.items()},
    }


_PAIR_COLUMNS = {
    **{"prompt": "text", "chosen": "image", "rejected": "image"},
    **{"chosen_score": "number", "rejected_score": "number", "chosen_model": "text", "rejected_model": "text"},
}
_LIST_COLUMNS = {"prompt": "text", "images": "images", "scores": "numbers", "models": "texts"}
_PICKAPIC_COLUMNS = {
    **{"caption": "text", "jpg_0": "bytes", "jpg_1": "bytes", "label_0": "number", "label_1": "number"},
    **{"has_label": "flag", "are_different": "flag", "model_0": "text", "model_1": "text"},
}
RECORD_FORMS: Mapping[str, RecordForm] = {
    "pairs": RecordForm(record=_pair, columns=_PAIR_COLUMNS),
    "lists": RecordForm(record=_list, columns=_LIST_COLUMNS),
    "pickapic": RecordForm(record=_pickapic, columns=_PICKAPIC_COLUMNS),
}


def _as_they_are(preferences: Preferences) -> tuple[Preferences, RecordForm]:
    form = "pairs" if all(len(scores) == 2 for scores in preferences.scores) else "lists"
    return preferences, RECORD_FORMS[form]


def _as_pickapic(preferences: Preferences) -> tuple[Preferences, RecordForm]:
    return as_pairs(preferences), RECORD_FORMS["pickapic"]


Target: TypeAlias = Literal["canonical", "pickapic"]
_TARGETS: Mapping[str, Callable[[Preferences], tuple[Preferences, RecordForm]]] = {
    "canonical": _as_they_are,
    "pickapic": _as_pickapic,
}


def _batches(preferences: Preferences, record: Callable[[Row], dict[str, object]]) -> Iterator[list[dict[str, object]]]:
    batch: list[dict[str, object]] = []
    size = 0
    for row in preferences:
        batch.append(record(row))
        size += sum(len(p) if isinstance(p, bytes) else p.stat().st_size for p in row.images)
        if len(batch) == _ROWS or size > _BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def write_parquet(preferences: Preferences, path: Path, *, to: Target = "canonical") -> Preferences:
    """Replaces `path` by a parquet file of all rows, at once when it is complete; returns the rows written.

    Args:
        to: "canonical" writes pairs (prompt, chosen, rejected, their scores and models) or, if any row has more than
            two images, lists (prompt, images, scores, models); "pickapic" writes every pair of a list, ties left out.

    Raises:
        ValueError: an unknown format, or an image file that cannot be read.
    """
    if to not in _TARGETS:
        raise ValueError(f'to must be "canonical" or "pickapic", got {to!r}.')
    rows, form = _TARGETS[to](preferences)
    write_records(rows, path, form.record, form.schema())
    return rows


def write_records(
    preferences: Preferences, path: Path, record: Callable[[Row], dict[str, object]], schema: "pa.Schema"
) -> None:
    """Replaces `path` by a parquet file of a record for each row, at once when it is complete.

    Raises:
        ValueError: an image file that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic.replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for batch in _batches(preferences, record):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
