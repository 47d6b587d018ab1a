"""Pairs from two folders of images, `w/` and `l/` (or `chosen/` and `rejected/`), matched by file stem."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from diffpref.data.bad_row import BadRow
from diffpref.data.rows import Dropped, OnBadRow, Preferences, Row, in_memory
from diffpref.data.synonyms import two_sides

FOLDERS = (("w", "l"), ("chosen", "rejected"))
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
CAPTION_SUFFIXES = (".txt", ".caption")
"""Of a file that holds the caption of the image of the same name; kohya's scripts write .caption."""
CAPTION_FILES = ("captions.json", "captions.csv", "metadata.jsonl", "metadata.csv")
_NAME_COLUMNS = ("file_name", "file", "image", "name", "stem")
_TEXT_COLUMNS = ("text", "caption", "prompt")


def pair_folders(root: Path) -> tuple[Path, Path] | None:
    """The folders of the better and of the worse images, if `root` has both: those of `FOLDERS`, or two whose names
    say the sides in the table of synonyms, such as winner/ and loser/."""
    pairs = ((root / better, root / worse) for better, worse in FOLDERS)
    known = next((pair for pair in pairs if pair[0].is_dir() and pair[1].is_dir()), None)
    if known is None and root.is_dir():
        sides = two_sides(path.name for path in root.iterdir() if path.is_dir())
        known = None if sides is None else (root / sides[0], root / sides[1])
    return known


def images_in(folder: Path) -> dict[str, Path]:
    """Stem (with inner folders) -> image, for every image in the folder."""
    images: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in images:
            raise ValueError(f"{path} and {images[stem].name} have the same stem: rename or remove one.")
        images[stem] = path
    if not images:
        raise ValueError(f"{folder} holds no image: put files with {', '.join(IMAGE_SUFFIXES)} there.")
    return images


def _field(record: object, columns: tuple[str, ...], where: str) -> str:
    value = next((record[c] for c in columns if c in record), None) if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise ValueError(f"{where} has no text in {' or '.join(columns)}: each entry needs a file and a caption.")
    return value


def _entries(path: Path) -> Iterator[tuple[str, str]]:
    """(file name, caption) of each entry of a caption file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            records: object = list(csv.DictReader(text.splitlines()))
        elif path.suffix == ".jsonl":
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            records = json.loads(text)
    except ValueError as problem:
        raise ValueError(f"{path} cannot be read ({problem}): write valid UTF-8 {path.suffix[1:]}.") from None
    if isinstance(records, dict):
        records = [{"file_name": name, "text": caption} for name, caption in records.items()]
    if not isinstance(records, list):
        raise ValueError(f"{path} must be an object {{file name: caption}} or a list of entries.")
    for number, record in enumerate(records):
        where = f"{path} entry {number}"
        yield _field(record, _NAME_COLUMNS, where), _field(record, _TEXT_COLUMNS, where)


def listed_captions(root: Path, folders: tuple[Path, Path]) -> dict[str, str]:
    """Stem -> caption from all caption files, in `root` or in either folder."""
    captions: dict[str, str] = {}
    inside = {folder.name for folder in folders}
    for path in (folder / name for folder in (root, *folders) for name in CAPTION_FILES):
        if not path.is_file():
            continue
        for name, caption in _entries(path):
            parts = Path(name).parts
            inner = Path(*parts[1:]) if parts and parts[0] in inside else Path(name)
            stem = inner.with_suffix("") if inner.suffix.lower() in IMAGE_SUFFIXES else inner
            if captions.setdefault(stem.as_posix(), caption) != caption:
                raise ValueError(f"{path} gives {name} a second, different caption: keep one.")
    return captions


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as problem:
        raise BadRow("caption is no text", f"{path} is no UTF-8 text ({problem}): write it again.") from None


def _caption(stem: str, root: Path, folders: tuple[Path, Path], listed: dict[str, str]) -> str:
    places = (folder / f"{stem}{suffix}" for folder in (*folders, root) for suffix in CAPTION_SUFFIXES)
    files = [path for path in places if path.is_file()]
    texts = {_text(path): path for path in files}
    if len(texts) > 1:
        raise BadRow("two captions", f"{' and '.join(map(str, texts.values()))} differ: a pair has one caption.")
    caption = next(iter(texts), listed.get(stem, "")).strip()
    if not caption:
        where = files[0] if files else f"{folders[0].name}/{stem}.txt, {folders[1].name}/{stem}.txt and {stem}.txt"
        rule = "is empty" if files else "do not exist"
        raise BadRow("no caption", f"{where} {rule}: write it, or list the caption in {' or '.join(CAPTION_FILES)}.")
    return caption


def read_folders(root: Path, folders: tuple[Path, Path], *, on_bad_row: OnBadRow, max_rows: int | None) -> Preferences:
    """One row for each stem; the image of the first folder has score 1, the other 0.

    Raises:
        ValueError: an image without its partner or its caption (with on_bad_row="error").
    """
    better, worse = (images_in(folder) for folder in folders)
    listed = listed_captions(root, folders)
    rows: list[Row] = []
    dropped = Dropped(on_bad_row)
    for stem in sorted(better.keys() | worse.keys())[:max_rows]:
        have = better.get(stem) or worse[stem]
        try:
            if stem not in better or stem not in worse:
                lacking = folders[1] if stem in better else folders[0]
                raise BadRow("no partner", f"no image named {stem} in {lacking}: add it, or remove {have.name}.")
            caption = _caption(stem, root, folders, listed)
        except BadRow as problem:
            dropped.bad(str(have), problem)
            continue
        where = f"folder {have.relative_to(root).as_posix()}"
        rows.append(Row(prompt=caption, images=(better[stem], worse[stem]), scores=(1.0, 0.0), where=where))
    return in_memory(str(root), f"folders {folders[0].name}/ and {folders[1].name}/", rows, dropped=dropped)
