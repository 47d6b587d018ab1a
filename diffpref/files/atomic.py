"""Writes that happen as a whole or not at all: a temporary name first, then a rename.

What appears has the mode that the user's umask gives: some libraries, safetensors for one, write files that nobody else
may read.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

READ_AND_WRITE = 0o666


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write; it becomes `path` when the block ends, and nothing of it stays if the block raises."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # The umask can be read only by setting it, for all threads; a new file tells it.
    temporary.touch()
    mode = temporary.stat().st_mode & READ_AND_WRITE
    temporary.unlink()
    try:
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace the file's content."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Replace the file's content with indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name, complete, when the block ends; nothing of it stays if the block raises."""
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        # Killed between the two renames below: the old folder is the only complete one that had this name.
        os.replace(old, path)
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(temporary.stat().st_mode & READ_AND_WRITE)
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_picture(path: Path, picture: "Image.Image") -> None:
    """Replace the PNG file."""
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")
