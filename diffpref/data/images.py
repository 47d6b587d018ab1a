"""Real images for methods that learn from the data itself: one image a row, with its caption or its class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from diffpref.data.bad_row import BadRow
from diffpref.data.preferences import preferences_in, read_preferences
from diffpref.data.rows import OnBadRow, Preferences, Row, check_choices, in_memory
from diffpref.data.schemas import Cells, Choice, Schema
from diffpref.settings.dotted import load_callable

if TYPE_CHECKING:
    from diffpref.data.open import OpenTable
    from diffpref.data.tables import Table


@runtime_checkable
class FolderReader(Protocol):
    """What reads a folder of files that only one program writes."""

    def __call__(self, folder: Path, *, split: str, max_rows: int | None) -> Preferences: ...


@dataclass(frozen=True, kw_only=True)
class FolderFormat:
    """A folder that one reader understands."""

    files: str
    """A pattern of file names; a folder with such a file has this format."""
    form: str
    """What the folder holds, in words for people."""
    reader: str
    """The address of its `FolderReader`."""


FOLDER_FORMATS = (
    FolderFormat(
        files="*-images-idx3-ubyte*",
        form="a folder with SPLIT-images-idx3-ubyte(.gz) and SPLIT-labels-idx1-ubyte(.gz), as MNIST has them",
        reader="diffpref.demo.idx:read_idx",
    ),
)
ACCEPTED = (
    *(known.form for known in FOLDER_FORMATS),
    "a .parquet, .json, .jsonl, .csv or .tar file, a folder of them, a saved data set or one on the hub, with the "
    "columns image and label, text, caption or prompt",
    "a folder of images, each with a caption in a .txt or .caption file of its name, or without",
    "preference data, of which the best image of each row is taken",
)
IMAGE_COLUMNS = ("image", "img")
PROMPT_COLUMNS = ("label", "text", "caption", "prompt")
"""The first that a table has is its prompt."""


def read_images(
    source: str | Path, *, split: str = "train", max_rows: int | None = None, on_bad_row: OnBadRow = "error"
) -> Preferences:
    """The images of a source, one a row with score 1; the prompt is the caption, or the number of the class.

    Args:
        source: one of `ACCEPTED`, told apart by what it holds.
        max_rows: how many rows are looked at, from the start.
        on_bad_row: "skip" leaves out rows of tables that cannot be used, and counts them by reason.

    Raises:
        ValueError: nothing of a known form, a file that cannot be read, or a row that means nothing.
    """
    check_choices(on_bad_row=on_bad_row, max_rows=max_rows)
    from diffpref.data.answers import holds_answers
    from diffpref.data.folders import pair_folders
    from diffpref.data.open import open_tables

    path = Path(source).expanduser()
    for known in FOLDER_FORMATS:
        if any(path.glob(known.files)):
            reader: FolderReader = load_callable("reader", known.reader)
            return reader(path, split=split, max_rows=max_rows)
    if pair_folders(path) or holds_answers(path):
        return best_images(read_preferences(source, split=split, max_rows=max_rows, on_bad_row=on_bad_row))
    if path.exists() and not _holds_tables(path):
        return _read_folder(path, split, max_rows)
    opened = open_tables(source, split=split)
    return _read_opened(opened, str(source), max_rows=max_rows, on_bad_row=on_bad_row)


def _holds_tables(path: Path) -> bool:
    from diffpref.data.folders import CAPTION_FILES
    from diffpref.data.open import BUILDERS

    # A saved data set keeps its rows in .arrow files, next to descriptions in .json.
    return any(file.suffix.lower() in BUILDERS and file.name not in CAPTION_FILES for file in _files(path))


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def _accepted() -> str:
    return "Images can be:" + "".join(f"\n  {form}" for form in ACCEPTED)


@dataclass(frozen=True)
class _Best:
    read: Callable[[int], Row]

    def __call__(self, number: int) -> Row:
        row = self.read(number)
        best = row.scores.index(max(row.scores))
        return replace(row, images=(row.images[best],), scores=(1.0,), models=row.models[best : best + 1])


def best_images(preferences: Preferences) -> Preferences:
    """The image of each row with the highest score, the first of equal ones, now with score 1."""
    return replace(
        preferences,
        read=_Best(preferences.read),
        scores=[(1.0,)] * len(preferences),
        log=(*preferences.log, f"images: the best one of each of {len(preferences)} rows"),
    )


def _read_opened(
    opened: Sequence["OpenTable"], source: str, *, max_rows: int | None, on_bad_row: OnBadRow
) -> Preferences:
    """The images of tables that all have an image and a prompt column, else the best ones of preference data."""
    from diffpref.data.detect import UnknownSchema
    from diffpref.data.tables import read_tables

    tables = [table for table in map(_image_table, opened) if table is not None]
    if len(tables) == len(opened):
        return read_tables(source, tables, on_bad_row=on_bad_row, max_rows=max_rows)
    try:
        preferences = preferences_in(opened, source, columns={}, on_bad_row=on_bad_row, max_rows=max_rows, ties="drop")
    except UnknownSchema as problem:
        raise ValueError(f"{problem}\nThese are the forms of preference data. {_accepted()}") from None
    return best_images(preferences)


def _image_table(opened: "OpenTable") -> "Table | None":
    """The table, if it has an image and a prompt column."""
    from diffpref.data.tables import table_of

    image, prompt = (
        next((name for name in known if name in opened.columns), None) for known in (IMAGE_COLUMNS, PROMPT_COLUMNS)
    )
    if image is None or prompt is None:
        return None
    schema = Schema(f"images ({image}, {prompt})", ("image", "prompt"), (), _caption)
    return table_of(opened, schema, {"image": image, "prompt": prompt})


def _caption(cells: Cells) -> Choice:
    text = cells["prompt"]
    if text is None:
        raise BadRow("no caption", "the label or caption is missing: fill it in, an empty caption is allowed.")
    if isinstance(text, bool) or not isinstance(text, (int, str)):
        raise BadRow("caption is no text", f"the label must be a class number or text, got {text!r:.80}.")
    return Choice(str(text).strip(), (cells["image"],), (1.0,))


def _read_folder(root: Path, split: str, max_rows: int | None) -> Preferences:
    """Images in a folder, captions next to them or in a caption file, "" where there is none."""
    from diffpref.data.folders import CAPTION_SUFFIXES, IMAGE_SUFFIXES, images_in, listed_captions

    if not root.is_dir() or not any(file.suffix.lower() in IMAGE_SUFFIXES for file in _files(root)):
        raise ValueError(f"{root} holds no images of a known form. {_accepted()}")
    inner = root / split
    if inner.is_dir():
        root = inner
    elif split != "train":
        raise ValueError(f"{root} has no folder {split}: put its images there, or leave the split out.")
    listed = listed_captions(root, (root, root))
    rows: list[Row] = []
    for stem, image in list(images_in(root).items())[:max_rows]:
        places = [image.with_suffix(suffix) for suffix in CAPTION_SUFFIXES]
        text_file = next((path for path in places if path.is_file()), places[0])
        try:
            caption = text_file.read_text(encoding="utf-8-sig") if text_file.is_file() else listed.get(stem, "")
        except UnicodeDecodeError as problem:
            raise ValueError(f"{text_file} is no UTF-8 text ({problem}): write it again.") from None
        # The place of a random crop is drawn from this text: other words would be other crops.
        where = f"picture {image.relative_to(root).as_posix()}"
        rows.append(Row(prompt=caption.strip(), images=(image,), scores=(1.0,), where=where))
    images = in_memory(str(root), "folder of images", rows)
    line = f"captions: {sum(bool(row.prompt) for row in rows)} of {len(rows)} images have one"
    return replace(images, log=(*images.log, line))
