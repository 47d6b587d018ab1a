"""Pairs from two folders: captions from every place they may lie, and mistakes by file name."""

import csv
import json
from pathlib import Path

import pytest

from diffpref.data.decode import decode
from diffpref.data.images import read_images
from diffpref.data.preferences import read_preferences


def folder(
    root: Path, image_bytes, names: tuple[str, str] = ("w", "l"), stems: tuple[str, ...] = ("cat", "dog")
) -> Path:
    for offset, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i, stem in enumerate(stems):
            kind = ("PNG", "png") if offset else ("JPEG", "jpg")
            (root / name / f"{stem}.{kind[1]}").write_bytes(image_bytes(10 * offset + i, kind=kind[0]))
    return root


@pytest.mark.parametrize("names", [("w", "l"), ("chosen", "rejected")])
@pytest.mark.parametrize("captions", ["better", "worse", "beside", "json", "csv", "jsonl", "prefixed"])
def test_folders_of_better_and_worse(tmp_path: Path, image_bytes, names: tuple[str, str], captions: str) -> None:
    root = folder(tmp_path / "my", image_bytes, names)
    texts = {"cat": "a cat", "dog": "a dog, sitting"}
    if captions in ("better", "worse", "beside"):
        place = {"better": root / names[0], "worse": root / names[1], "beside": root}[captions]
        for stem, text in texts.items():
            (place / f"{stem}.txt").write_text(text + "\n")
    elif captions == "json":
        (root / "captions.json").write_text(json.dumps({"cat": texts["cat"], "dog.png": texts["dog"]}))
    elif captions == "csv":
        with (root / "captions.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "caption"), *texts.items()])
    else:
        prefix = f"{names[0]}/" if captions == "prefixed" else ""
        place = root if captions == "prefixed" else root / names[0]
        lines = [json.dumps({"file_name": f"{prefix}{stem}.jpg", "text": text}) for stem, text in texts.items()]
        (place / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    rows = read_preferences(root)
    assert [row.prompt for row in rows] == ["a cat", "a dog, sitting"]
    assert rows[1].scores == (1.0, 0.0) and rows[1].images == (
        root / names[0] / "dog.jpg",
        root / names[1] / "dog.png",
    )
    assert decode(rows[1].images[1]).getpixel((0, 0)) == (11, 11, 11)
    assert rows[0].where == f"folder {names[0]}/cat.jpg"


def test_captions_in_files_of_kohyas_ending(tmp_path: Path, image_bytes) -> None:
    root = folder(tmp_path / "my", image_bytes, stems=("cat", "dog"))
    (root / "captions.json").write_text('{"cat": "listed"}')
    (root / "w" / "cat.caption").write_text("a cat\n")
    (root / "dog.caption").write_text("a dog")
    assert [row.prompt for row in read_preferences(root)] == ["a cat", "a dog"]
    (root / "l" / "dog.txt").write_text("another dog")
    with pytest.raises(ValueError, match=r"l/dog.txt and .*my/dog.caption differ: a pair has one caption"):
        read_preferences(root)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "fox.png").write_bytes(image_bytes(1))
    (alone / "fox.caption").write_text("a fox")
    assert [row.prompt for row in read_images(str(alone))] == ["a fox"]


def test_folder_mistakes_name_the_file(tmp_path: Path, image_bytes) -> None:
    root = folder(tmp_path / "my", image_bytes, stems=("cat", "dog", "owl"))
    (root / "captions.json").write_text('{"cat": "a cat", "dog": " "}')
    with pytest.raises(
        ValueError, match=r"w/dog.jpg: w/dog.txt, l/dog.txt and dog.txt do not exist: write it, or list"
    ):
        read_preferences(root)
    (root / "dog.txt").write_text("")
    with pytest.raises(ValueError, match=r"my/dog.txt is empty: write it"):
        read_preferences(root)
    (root / "dog.txt").write_text("a dog")
    (root / "w" / "owl.jpg").unlink()
    (root / "owl.txt").write_text("an owl")
    with pytest.raises(ValueError, match=r"l/owl.png: no image named owl in .*my/w: add it, or remove owl.png"):
        read_preferences(root)
    kept = read_preferences(root, on_bad_row="skip")
    assert len(kept) == 2 and kept.dropped == {"no partner": 1}
    assert kept.summary().endswith("read: 3 rows, 2 kept, 1 dropped (1 no partner)")
    (root / "w" / "dog.txt").write_text("another dog")
    with pytest.raises(ValueError, match=r"w/dog.txt and .*my/dog.txt differ: a pair has one caption"):
        read_preferences(root, max_rows=2)
    assert len(read_preferences(root, max_rows=1)) == 1
    (root / "l" / "cat.jpg").write_bytes(image_bytes(1))
    with pytest.raises(ValueError, match="l/cat.png and cat.jpg have the same stem"):
        read_preferences(root)
    with pytest.raises(ValueError, match="split 'test' means nothing: leave it out"):
        read_preferences(root, split="test")


def test_broken_caption_files_are_named(tmp_path: Path, image_bytes) -> None:
    root = folder(tmp_path / "my", image_bytes)
    (root / "captions.json").write_text("{")
    with pytest.raises(ValueError, match=r"captions.json cannot be read .*write valid UTF-8 json"):
        read_preferences(root)
    (root / "captions.json").write_text('[{"file_name": "cat.png"}]')
    with pytest.raises(ValueError, match=r"captions.json entry 0 has no text in text or caption or prompt"):
        read_preferences(root)
    (root / "captions.json").write_text('[["cat", "a cat"]]')
    with pytest.raises(ValueError, match=r"captions.json entry 0 has no text in file_name"):
        read_preferences(root)
    (root / "captions.json").write_text("3")
    with pytest.raises(ValueError, match=r"captions.json must be an object"):
        read_preferences(root)
    (root / "captions.json").write_text('{"cat": "a", "cat.png": "b"}')
    with pytest.raises(ValueError, match=r"captions.json gives cat.png a second, different caption"):
        read_preferences(root)
    for path in (root / "w").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"my/w holds no image"):
        read_preferences(root)
