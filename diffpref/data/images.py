"""Real pictures for methods that learn from the data itself: one picture a row, with its caption or its class."""

import gzip
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffpref.data.rows import BadRow, Preferences, Row
from diffpref.data.schemas import Cells, Choice, Schema
from diffpref.data.sources import read_preferences
from diffpref.data.tables import OnBadRow, Table, read_rows, read_tables

ACCEPTED = (
    "a folder with SPLIT-images-idx3-ubyte(.gz) and SPLIT-labels-idx1-ubyte(.gz), as MNIST has them",
    "a .parquet, .json, .jsonl, .csv or .tar file, a folder of them, a saved data set or one on the hub, with the "
    "columns image and label, text, caption or prompt",
    "a folder of pictures, each with a caption in a .txt file of its name, or without",
    "preference data, of which the best picture of each row is taken",
)
IMAGE_COLUMNS = ("image", "img")
PROMPT_COLUMNS = ("label", "text", "caption", "prompt")
"""The first that a table has is its prompt."""
_IDX_SPLITS = {"train": "train", "test": "t10k"}


def read_pictures(
    source: str | Path, *, split: str = "train", max_rows: int | None = None, on_bad_row: OnBadRow = "error"
) -> Preferences:
    """The pictures of a source, one a row with score 1; the prompt is the caption, or the number of the class.

    Args:
        source: one of `ACCEPTED`, told apart by what it holds.
        max_rows: how many rows are looked at, from the start.
        on_bad_row: "skip" leaves out rows of tables that cannot be used, and counts them by reason.

    Raises:
        ValueError: nothing of a known form, a file that cannot be read, or a row that means nothing.
    """
    if on_bad_row not in ("error", "skip"):
        raise ValueError(f'on_bad_row must be "error" or "skip", got {on_bad_row!r}.')
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows must be 1 or above, got {max_rows}; leave it out to read all rows.")
    from diffpref.data.files import BUILDERS
    from diffpref.data.folders import CAPTION_FILES, PICTURE_SUFFIXES, pair_folders

    path = Path(source).expanduser()
    if any(path.glob("*-images-idx3-ubyte*")):
        return _read_idx(path, split, max_rows)
    if pair_folders(path) is None and path.exists():
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        # A saved data set keeps its rows in .arrow files, beside descriptions in .json.
        if not any(file.suffix.lower() in BUILDERS and file.name not in CAPTION_FILES for file in files):
            if path.is_dir() and any(file.suffix.lower() in PICTURE_SUFFIXES for file in files):
                return _read_folder(path, split, max_rows)
            raise ValueError(f"{path} holds no pictures of a known form. {_accepted()}")
    tables = [] if pair_folders(path) else _tables(str(source), split)
    if tables:
        return read_tables(str(source), tables, on_bad_row=on_bad_row, max_rows=max_rows)
    return best_pictures(_preferences(str(source), split, max_rows, on_bad_row))


def _accepted() -> str:
    return "Pictures can be:" + "".join(f"\n  {form}" for form in ACCEPTED)


@dataclass(frozen=True)
class _Best:
    read: Callable[[int], Row]

    def __call__(self, number: int) -> Row:
        row = self.read(number)
        best = row.scores.index(max(row.scores))
        return Row(row.prompt, (row.pictures[best],), (1.0,), row.where, row.models[best : best + 1])


def best_pictures(preferences: Preferences) -> Preferences:
    """The picture of each row with the highest score, the first of equal ones, now with score 1."""
    return replace(
        preferences,
        read=_Best(preferences.read),
        scores=[(1.0,)] * len(preferences),
        log=(*preferences.log, f"pictures: the best one of each of {len(preferences)} rows"),
    )


def _preferences(source: str, split: str, max_rows: int | None, on_bad_row: OnBadRow) -> Preferences:
    try:
        return read_preferences(source, split=split, max_rows=max_rows, on_bad_row=on_bad_row)
    except ValueError as problem:
        if "match no known schema" not in str(problem):
            raise
        raise ValueError(f"{problem}\nThese are the forms of preference data. {_accepted()}") from None


def _caption(cells: Cells) -> Choice:
    text = cells["prompt"]
    if text is None:
        raise BadRow("no caption", "the label or caption is missing: fill it in, an empty caption is allowed.")
    if isinstance(text, bool) or not isinstance(text, (int, str)):
        raise BadRow("caption is no text", f"the label must be a class number or text, got {text!r:.80}.")
    return Choice(str(text).strip(), (cells["image"],), (1.0,))


def _tables(source: str, split: str) -> list[Table]:
    """The tables of the source if all have a picture and a prompt column, else none: they may hold preferences."""
    tables: list[Table] = []
    for where, rows, folder in _open(source, split):
        image, prompt = (
            next((name for name in known if name in rows.column_names), None)
            for known in (IMAGE_COLUMNS, PROMPT_COLUMNS)
        )
        if image is None or prompt is None:
            return []
        schema = Schema(f"pictures ({image}, {prompt})", ("image", "prompt"), (), _caption)
        arrow = rows.select_columns([image, prompt]).with_format("arrow")
        tables.append(Table(where, arrow, schema, {"image": image, "prompt": prompt}, folder))
    return tables


def _open(source: str, split: str) -> list[tuple[str, Any, Path | None]]:
    """(name, data set, folder of relative paths) of each file or split; none where it cannot be opened."""
    import datasets

    from diffpref.data.files import _HUB_NAME, BUILDERS, _data_files

    path = Path(source).expanduser()
    try:
        if not path.exists():
            known = _HUB_NAME.fullmatch(source) and path.suffix not in BUILDERS
            return [(f"{source}[{split}]", datasets.load_dataset(source, split=split), None)] if known else []
        if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
            saved: Any = datasets.load_from_disk(str(path))
            if isinstance(saved, datasets.DatasetDict):
                return [(f"{path.name}[{split}]", saved[split], path)]
            return [(path.name, saved, path)] if split == "train" else []
        opened: list[tuple[str, Any, Path | None]] = []
        for file in _data_files(path, split) if path.is_dir() else [path] if split == "train" else []:
            builder = BUILDERS[file.suffix.lower()]
            # As in `files`: the label "None" is a text.
            options: dict[str, Any] = {"keep_default_na": False} if builder == "csv" else {}
            rows = datasets.load_dataset(builder, data_files={"train": str(file)}, split="train", **options)
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            opened.append((name, rows, file.parent))
        return opened
    except Exception:  # `read_preferences`, which comes next, fails in the same way and says why
        return []


def _read_folder(root: Path, split: str, max_rows: int | None) -> Preferences:
    """Pictures in a folder, captions beside them or in a caption file, "" where there is none."""
    from diffpref.data.folders import _listed_captions, _pictures

    inner = root / split
    if inner.is_dir():
        root = inner
    elif split != "train":
        raise ValueError(f"{root} has no folder {split}: put its pictures there, or leave the split out.")
    listed = _listed_captions(root, (root, root))
    rows: list[Row] = []
    for stem, picture in list(_pictures(root).items())[:max_rows]:
        beside = picture.with_suffix(".txt")
        try:
            caption = beside.read_text(encoding="utf-8-sig") if beside.is_file() else listed.get(stem, "")
        except UnicodeDecodeError as problem:
            raise ValueError(f"{beside} is no UTF-8 text ({problem}): write it again.") from None
        rows.append(Row(caption.strip(), (picture,), (1.0,), f"picture {picture.relative_to(root).as_posix()}"))
    pictures = read_rows(str(root), "folder of pictures", rows)
    line = f"captions: {sum(bool(row.prompt) for row in rows)} of {len(rows)} pictures have one"
    return replace(pictures, log=(*pictures.log, line))


@dataclass(frozen=True)
class _Idx:
    pictures: np.ndarray
    labels: np.ndarray
    where: str

    def __call__(self, number: int) -> Row:
        stream = io.BytesIO()
        Image.fromarray(self.pictures[number]).save(stream, "PNG")
        return Row(str(self.labels[number]), (stream.getvalue(),), (1.0,), f"{self.where} row {number}")


def _read_idx(folder: Path, split: str, max_rows: int | None) -> Preferences:
    """Grey pictures and class numbers of MNIST's format; every row becomes a PNG file when it is read."""
    if split not in _IDX_SPLITS:
        raise ValueError(f"{folder} holds idx files, of which split must be train or test (t10k), got {split!r}.")
    prefix = _IDX_SPLITS[split]
    pictures_file, labels_file = (
        _idx_file(folder, f"{prefix}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    pictures, labels = _idx_array(pictures_file, 3), _idx_array(labels_file, 1)
    if len(pictures) != len(labels):
        raise ValueError(
            f"{pictures_file} has {len(pictures)} pictures and {labels_file.name} {len(labels)} labels: "
            "they must belong together, one label a picture."
        )
    if pictures.size == 0:
        raise ValueError(f"{pictures_file} holds no picture: its axes are {pictures.shape}.")
    kept = len(pictures) if max_rows is None else min(max_rows, len(pictures))
    reader = _Idx(pictures, labels, pictures_file.name)
    line = f"read: {kept} rows, {kept} kept"
    return Preferences(str(folder), "pictures and labels (idx)", reader, range(kept), [(1.0,)] * kept, {}, (line,))


def _idx_file(folder: Path, name: str) -> Path:
    found = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if found is None:
        raise ValueError(f"{folder} has neither {name} nor {name}.gz: add one of them, or ask for the other split.")
    return found


def _idx_array(path: Path, axes: int) -> np.ndarray:
    """The unsigned bytes of an idx file: 0, 0, 8 (uint8), the number of axes, each axis as a big-endian integer."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as problem:
        raise ValueError(f"{path} cannot be unpacked ({problem}): get the file again.") from None
    header = 4 + 4 * axes
    if data[:4] != bytes((0, 0, 8, axes)) or len(data) < header:
        raise ValueError(f"{path} is no idx file of unsigned bytes with {axes} axes: it starts with {data[:4].hex()}.")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", axes, 4))
    if len(data) - header != np.prod(shape, dtype=object):
        raise ValueError(f"{path} is cut short or too long: {len(data) - header} bytes for axes {shape}; get it again.")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
