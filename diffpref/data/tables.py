"""Rows out of Arrow tables: a first pass that opens no image decides what is kept, later reads fetch one row."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc

from diffpref.data.bad_row import BadRow
from diffpref.data.decode import ImageSource
from diffpref.data.open import OpenTable
from diffpref.data.rows import Dropped, OnBadRow, Preferences, Row, Ties, count_dropped
from diffpref.data.schemas import Cells, Choice, Schema

_BATCH = 1000
# Stands for an image's bytes in the first pass.
_PRESENT = b"?"


@runtime_checkable
class ArrowRows(Protocol):
    """A `datasets.Dataset` with format "arrow": a slice is a pyarrow.Table without decoded images."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Table:
    """One file or split: its rows, its schema, and where its relative image paths start."""

    where: str
    rows: ArrowRows
    schema: Schema
    names: Mapping[str, str]
    """The schema's column name -> the table's."""
    folder: Path | None = None
    """The folder of the file; image paths are relative to it or to a folder in it."""

    def choice(self, cells: Cells, *, ties: Ties) -> Choice | str:
        """What the row means or why it is left out; every image cell holds bytes or a path."""
        choice = self.schema.convert(cells)
        if isinstance(choice, Choice):
            if ties == "drop" and len(choice.scores) > 1 and len(set(choice.scores)) == 1:
                return "tie"
            for number, cell in enumerate(choice.cells):
                _check_cell(cell, number)
        return choice

    def outlines(self, stop: int) -> Iterator[Cells]:
        """The first `stop` rows, where `_PRESENT` stands for the bytes of an image."""
        for start in range(0, stop, _BATCH):
            batch = self.rows[start : min(start + _BATCH, stop)]
            columns = {name: _outline(batch.column(column)) for name, column in self.names.items()}
            yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))

    def row(self, number: int) -> Row:
        """The row of that number, with its images."""
        line = self.rows[number : number + 1]
        choice = self.choice({name: line.column(column)[0].as_py() for name, column in self.names.items()}, ties="keep")
        assert isinstance(choice, Choice), "only kept rows are read"
        return Row(
            prompt=choice.prompt,
            images=tuple(self._image(cell) for cell in choice.cells),
            scores=choice.scores,
            where=f"{self.where} row {number}",
            models=choice.models,
        )

    def prompt(self, number: int) -> str:
        """The prompt of the row of that number; no image is read."""
        line = self.rows[number : number + 1]
        choice = self.schema.convert({name: _outline(line.column(column))[0] for name, column in self.names.items()})
        assert isinstance(choice, Choice), "only kept rows are read"
        return choice.prompt

    def _image(self, cell: object) -> ImageSource:
        content = cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell
        if isinstance(content, bytes):
            return content
        path = Path(str(content))
        if self.folder is None or path.is_absolute() or (self.folder / path).exists():
            return path if self.folder is None else self.folder / path
        inner_paths = (inner / path for inner in sorted(self.folder.iterdir()) if inner.is_dir())
        return next((inner for inner in inner_paths if inner.exists()), self.folder / path)


def _check_cell(cell: object, number: int) -> None:
    content = cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell
    if content is None or content == "" or content == b"":
        raise BadRow("no image", f"image {number} is empty: give its bytes or its path.")
    if not isinstance(content, (bytes, str)):
        raise BadRow(
            "image of a wrong type",
            f"image {number} must be bytes, a path or {{bytes, path}}, got {type(content).__name__}.",
        )
    if isinstance(content, str) and content.startswith(("http://", "https://")):
        raise BadRow("image is a URL", f"image {number} is the URL {content:.80}: download it and give its path.")


def _outline(column: pa.ChunkedArray) -> list[object]:
    """The cells, with `_PRESENT` for bytes and {bytes, path} structs, so that no image is copied."""
    return [cell for chunk in column.chunks for cell in _outline_chunk(chunk)]


def _outline_chunk(chunk: pa.Array) -> list[object]:
    kind = chunk.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [_PRESENT if length else None for length in pc.call_function("binary_length", [chunk]).to_pylist()]
    if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        fields = dict(zip((field.name for field in kind), chunk.flatten(), strict=True))
        stored, paths = _outline_chunk(fields["bytes"]), fields["path"].to_pylist()
        return [bytes_ if bytes_ is not None else path for bytes_, path in zip(stored, paths, strict=True)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        cells = iter(_outline_chunk(chunk.flatten()))
        lengths = pc.call_function("list_value_length", [chunk]).to_pylist()
        return [None if length is None else [next(cells) for _ in range(length)] for length in lengths]
    return chunk.to_pylist()


def table_of(opened: OpenTable, schema: Schema, names: Mapping[str, str]) -> Table:
    """The open table, read by a schema; `names` are the schema's names of columns -> the table's."""
    columns = list(dict.fromkeys(names.values()))
    arrow = opened.dataset.select_columns(columns).with_format("arrow")
    return Table(where=opened.where, rows=arrow, schema=schema, names=names, folder=opened.folder)


@dataclass(frozen=True)
class _Reader:
    tables: tuple[Table, ...]
    starts: tuple[int, ...]

    def __call__(self, number: int) -> Row:
        table = bisect_right(self.starts, number) - 1
        return self.tables[table].row(number - self.starts[table])

    def prompt(self, number: int) -> str:
        table = bisect_right(self.starts, number) - 1
        return self.tables[table].prompt(number - self.starts[table])


def read_tables(
    source: str, tables: Sequence[Table], *, on_bad_row: OnBadRow, max_rows: int | None, ties: Ties = "drop"
) -> Preferences:
    """The usable rows of all tables, of which at most `max_rows` are looked at.

    Raises:
        ValueError: a row that means nothing (with on_bad_row="error"), or no row that can be used.
    """
    starts = [0]
    index: list[int] = []
    scores: list[tuple[float, ...]] = []
    dropped = Dropped(on_bad_row)
    # Labels repeat: sharing equal tuples keeps a million pairs small.
    shared: dict[tuple[float, ...], tuple[float, ...]] = {}
    for table in tables:
        left = len(table.rows) if max_rows is None else min(len(table.rows), max_rows - starts[-1])
        for number, cells in enumerate(table.outlines(left)):
            try:
                choice = table.choice(cells, ties=ties)
            except BadRow as problem:
                dropped.bad(f"{table.where} row {number}", problem)
                continue
            if isinstance(choice, str):
                dropped.counts[choice] += 1
            else:
                index.append(starts[-1] + number)
                scores.append(shared.setdefault(choice.scores, choice.scores))
        starts.append(starts[-1] + left)
    if not index:
        tied = " There is no preference in the data: score its images so that they differ."
        raise dropped.nothing_left(source, starts[-1], tied if "tie" in dropped.counts else "")
    line = f"read: {starts[-1]} rows, {len(index)} kept{count_dropped(dropped.counts)}"
    name = " + ".join(dict.fromkeys(table.schema.name for table in tables))
    read = _Reader(tuple(tables), tuple(starts))
    return Preferences(
        source=source,
        schema=name,
        read=read,
        index=index,
        scores=scores,
        dropped=dict(dropped.counts),
        log=(line,),
        read_prompt=read.prompt,
        problems=tuple(dropped.problems),
    )
