"""Files and folders are replaced whole or not at all, whatever a killed run left behind."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diffpref.files import atomic


class Stop(Exception):
    """What ends a block in the middle."""


def refuse(*_: object) -> None:
    raise OSError("no rename today")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_text_and_json_replace_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    atomic.write_text(path, "old")
    atomic.write_json(path, {"é": [1, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1, None]} and "é" in path.read_text(encoding="utf-8")
    assert path.read_bytes().endswith(b"\n") and names(tmp_path) == {"state.json"}


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.txt"
    atomic.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic.write_text(path, "fine until here \udcff")
    with pytest.raises(TypeError):
        atomic.write_json(path, object())
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no rename"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == {"state.txt"}


def test_the_old_text_stands_until_the_new_one_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename, seen = tmp_path / "state.txt", os.replace, []

    def watch(source: Path, target: Path) -> None:
        seen.append((path.read_text(), Path(source).read_text(), Path(target)))
        rename(source, target)

    atomic.write_text(path, "old")
    monkeypatch.setattr(os, "replace", watch)
    atomic.write_text(path, "new")
    assert seen == [("old", "new", path)] and path.read_text() == "new"


def test_a_picture_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sample.png"
    for level in (10, 200):
        atomic.save_picture(path, Image.new("RGB", (3, 2), (level,) * 3))
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.getpixel((0, 0)) == (200, 200, 200)
    # A PNG holds no CMYK: the save fails in the middle.
    with pytest.raises(OSError):
        atomic.save_picture(path, Image.new("CMYK", (3, 2)))
    with Image.open(path) as picture:
        assert picture.getpixel((0, 0)) == (200, 200, 200)
    assert names(tmp_path) == {"sample.png"}


def test_a_folder_appears_complete_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "checkpoint-1"
    with atomic.new_folder(path) as new:
        (new / "a").write_text("1")
        assert not path.exists() and new.parent == path.parent, "on the same disk, or the rename would copy"
    assert (path / "a").read_text() == "1" and names(path.parent) == {"checkpoint-1"}


@pytest.mark.parametrize("existing", [False, True])
def test_a_block_that_raises_changes_nothing(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "checkpoint-1"
    if existing:
        path.mkdir()
        (path / "old").write_text("1")
    with pytest.raises(Stop), atomic.new_folder(path) as new:
        (new / "half").write_text("2")
        raise Stop
    assert names(tmp_path) == ({"checkpoint-1"} if existing else set())
    if existing:
        assert names(path) == {"old"}


def test_an_existing_folder_is_replaced_not_merged(tmp_path: Path) -> None:
    path = tmp_path / "unet"
    for name in ("first", "second"):
        with atomic.new_folder(path) as new:
            (new / name).write_text("x")
    assert names(path) == {"second"} and names(tmp_path) == {"unet"}


def test_a_failing_rename_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = tmp_path / "unet", os.replace

    def fail_into_place(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".tmp"):
            raise OSError("no rename today")
        rename(source, target)

    with atomic.new_folder(path) as new:
        (new / "old").write_text("x")
    monkeypatch.setattr(os, "replace", fail_into_place)
    with pytest.raises(OSError, match="no rename"), atomic.new_folder(path) as new:
        (new / "new").write_text("x")
    assert names(path) == {"old"} and names(tmp_path) == {"unet"}


@pytest.mark.parametrize("umask", [0o022, 0o007, 0o077])
def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    """Not that of the library: safetensors writes for the owner alone."""
    before = os.umask(umask)
    try:
        (tmp_path / "old").touch(mode=0o600)
        with atomic.replacing(tmp_path / "a.safetensors") as temporary:
            save_file({"x": torch.zeros(1)}, temporary)
        with atomic.new_folder(tmp_path / "unet") as new:
            (new / "deep").mkdir()
            for name in ("one.safetensors", "deep/two.safetensors"):
                save_file({"x": torch.zeros(1)}, new / name)
        atomic.write_json(tmp_path / "old", {})
        atomic.save_picture(tmp_path / "b.png", Image.new("RGB", (1, 1)))
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5 and {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}
    assert (tmp_path / "unet" / "deep").stat().st_mode & 0o777 == 0o777 & ~umask


def left_over(path: Path, kind: str) -> None:
    """What a process leaves that was killed inside new_folder."""
    hidden = path.with_name(f".{path.name}.{kind}")
    hidden.mkdir(parents=True)
    (hidden / f"{kind} file").write_text("x")


@pytest.mark.parametrize("kinds", [["tmp"], ["old"], ["tmp", "old"]])
@pytest.mark.parametrize("existing", [False, True])
def test_leftovers_of_a_killed_run_are_no_obstacle(tmp_path: Path, kinds: list[str], existing: bool) -> None:
    path = tmp_path / "unet"
    for kind in kinds:
        left_over(path, kind)
    if existing:
        path.mkdir()
    with atomic.new_folder(path) as new:
        assert not names(new)
        (new / "new").write_text("x")
    assert names(path) == {"new"} and names(tmp_path) == {"unet"}


def test_killed_between_the_renames_and_then_failing_still_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "unet"
    left_over(path, "old")
    with pytest.raises(Stop), atomic.new_folder(path):
        raise Stop
    assert names(path) == {"old file"}
