"""Real images from every kind of source, and their way into the cache."""

import gzip
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from diffpref.backbones.prompts import collate
from diffpref.data.decode import decode
from diffpref.data.encode import encode_preferences
from diffpref.data.framing import Framing
from diffpref.data.images import read_images
from diffpref.files.store import TensorStore

FASHION = Path("/usr/share/datasets/fashion-mnist")
MakeImage = Callable[..., bytes]


def write_idx(folder: Path, prefix: str = "train", *, n: int = 3, zipped: bool = True) -> np.ndarray:
    """Random images of 28 x 28 with the labels 0, 1, 2, ... in MNIST's format."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, 28, 28), np.uint8)
    images = b"\0\0\x08\x03" + struct.pack(">3I", n, 28, 28) + pixels.tobytes()
    labels = b"\0\0\x08\x01" + struct.pack(">I", n) + bytes(range(n))
    for name, data in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        path = folder / f"{prefix}-{name}{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(data) if zipped else data)
    return pixels


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files(tmp_path: Path, zipped: bool) -> None:
    pixels = write_idx(tmp_path, zipped=zipped)
    write_idx(tmp_path, "t10k", n=2, zipped=zipped)
    rows = read_images(tmp_path)
    assert [row.prompt for row in rows] == ["0", "1", "2"] and list(rows.scores) == [(1.0,)] * 3
    assert rows[2].where == f"train-images-idx3-ubyte{'.gz' if zipped else ''} row 2" and rows[2].scores == (1.0,)
    for row, expected in zip(rows, pixels, strict=True):
        assert (np.array(decode(row.images[0])) == expected[:, :, None]).all()
    assert len(read_images(tmp_path, split="test")) == 2
    assert len(read_images(tmp_path, max_rows=1)) == 1
    assert len(read_images(tmp_path, max_rows=9)) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte.gz", b"no gzip", "images-idx3-ubyte.gz cannot be unpacked"),
        ("train-images-idx3-ubyte.gz", gzip.compress(bytes(999), mtime=0)[:-9], "ubyte.gz cannot be unpacked"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(b"PNG", mtime=0), "labels-idx1-ubyte.gz is no idx file"),
        (
            "train-images-idx3-ubyte.gz",
            gzip.compress(b"\0\0\x08\x03" + bytes(12) + b"\1", mtime=0),
            "cut short or too long",
        ),
        ("train-labels-idx1-ubyte.gz", gzip.compress(b"\0\0\x08\x01\0\0\0\1\0", mtime=0), "3 images .* 1 labels"),
    ],
)
def test_bad_idx_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_idx(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_images(tmp_path)


def test_idx_without_the_split(tmp_path: Path) -> None:
    write_idx(tmp_path)
    with pytest.raises(ValueError, match="neither t10k-images-idx3-ubyte nor t10k-images-idx3-ubyte.gz"):
        read_images(tmp_path, split="test")
    with pytest.raises(ValueError, match="split must be train or test .*'validation'"):
        read_images(tmp_path, split="validation")


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist() -> None:
    """The known first labels of the published file: an ankle boot, two t-shirts, a dress."""
    rows = read_images(FASHION, max_rows=4)
    assert [row.prompt for row in rows] == ["9", "0", "0", "3"]
    assert decode(rows[0].images[0]).size == (28, 28)


@pytest.mark.parametrize("suffix", ["file", "folder", "saved", "splits"])
def test_tables_with_classes(parquet: Callable[..., Path], image_bytes: MakeImage, suffix: str, tmp_path: Path) -> None:
    """The columns of zalando-datasets/fashion_mnist, in every form that data sets have here."""
    columns = {"image": [{"bytes": image_bytes(level), "path": None} for level in (0, 80, 160)], "label": [2, 0, 1]}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["shirt", "shoe", "bag"])}
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    source = tmp_path / "source"
    if suffix == "saved":
        data.save_to_disk(source)
    elif suffix == "splits":
        datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(source)
        assert len(read_images(source, split="test")) == 1
    else:
        source.mkdir()
        path = parquet(columns, "source/train.parquet", features)
        source = path if suffix == "file" else source
    rows = read_images(source)
    assert rows.schema == "images (image, label)"
    assert [row.prompt for row in rows] == ["2", "0", "1"] and list(rows.scores) == [(1.0,)] * 3
    assert [np.array(decode(row.images[0])).max() for row in rows] == [0, 80, 160]
    assert len(read_images(source, max_rows=2)) == 2


def test_data_set_on_the_hub(image_bytes: MakeImage, monkeypatch: pytest.MonkeyPatch) -> None:
    data = datasets.Dataset.from_dict({"image": [image_bytes(4)], "label": [9]})
    asked: list[tuple[str, str]] = []

    def load(name: str, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((name, split))
        return data

    monkeypatch.setattr(datasets, "load_dataset", load)
    row = read_images("zalando-datasets/fashion_mnist", split="test")[0]
    assert (row.prompt, row.images, row.where) == ("9", (image_bytes(4),), "zalando-datasets/fashion_mnist[test] row 0")
    assert asked == [("zalando-datasets/fashion_mnist", "test")]


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_tables_with_captions(parquet: Callable[..., Path], image_bytes: MakeImage, column: str) -> None:
    rows = read_images(parquet({"image": [image_bytes(1), image_bytes(2)], column: [" a cat ", ""]}))
    assert [row.prompt for row in rows] == ["a cat", ""]


def test_table_of_paths(json_file: Callable[..., Path], image_bytes: MakeImage) -> None:
    path = json_file([{"img": "a.png", "label": "7"}], "data.jsonl")
    (path.parent / "a.png").write_bytes(image_bytes(3))
    row = read_images(path)[0]
    assert row.prompt == "7" and row.images == (path.parent / "a.png",)


def test_bad_rows_of_tables_are_named_or_skipped(parquet: Callable[..., Path], image_bytes: MakeImage) -> None:
    path = parquet({"image": [image_bytes(1), None, image_bytes(2)], "text": ["a", "b", None]})
    with pytest.raises(ValueError, match="pairs.parquet row 1: image 0 is empty"):
        read_images(path)
    rows = read_images(path, on_bad_row="skip")
    assert [row.prompt for row in rows] == ["a"] and rows.dropped == {"no image": 1, "no caption": 1}


def test_folder_of_images(tmp_path: Path, image_bytes: MakeImage) -> None:
    (tmp_path / "more").mkdir()
    for name in ("a.png", "more/b.png", "c.png"):
        (tmp_path / name).write_bytes(image_bytes(5))
    (tmp_path / "a.txt").write_text("an apple\n")
    (tmp_path / "metadata.csv").write_text("file_name,text\nmore/b.png,a bee\na.png,not this\n")
    rows = read_images(tmp_path)
    assert [(row.prompt, row.images, row.where) for row in rows] == [
        ("an apple", (tmp_path / "a.png",), "picture a.png"),
        ("", (tmp_path / "c.png",), "picture c.png"),
        ("a bee", (tmp_path / "more" / "b.png",), "picture more/b.png"),
    ]
    assert "captions: 2 of 3 images have one" in rows.log
    assert len(read_images(tmp_path, max_rows=2)) == 2
    with pytest.raises(ValueError, match="has no folder test"):
        read_images(tmp_path, split="test")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="a.txt is no UTF-8"):
        read_images(tmp_path)


def test_folder_with_splits(tmp_path: Path, image_bytes: MakeImage) -> None:
    for name in ("train/a.png", "test/b.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(image_bytes(5))
    assert [row.images[0] for row in read_images(tmp_path)] == [tmp_path / "train" / "a.png"]
    assert [row.images[0] for row in read_images(tmp_path, split="test")] == [tmp_path / "test" / "b.png"]


def test_the_best_of_each_row(parquet: Callable[..., Path], image_bytes: MakeImage) -> None:
    images = [[image_bytes(level) for level in (1, 2, 3)], [image_bytes(level) for level in (4, 5, 6)]]
    scores = [[0.1, 0.7, 0.3], [2.0, 1.0, 2.0]]
    rows = read_images(parquet({"prompt": ["a", "b"], "images": images, "scores": scores}))
    assert [(row.prompt, row.images, row.scores) for row in rows] == [
        ("a", (images[0][1],), (1.0,)),
        ("b", (images[1][0],), (1.0,)),
    ]
    assert list(rows.scores) == [(1.0,)] * 2 and rows.log[-1] == "images: the best one of each of 2 rows"


def test_pair_folders_give_the_better(tmp_path: Path, image_bytes: MakeImage) -> None:
    for name in ("w", "l"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(image_bytes(5))
    (tmp_path / "a.txt").write_text("a pear")
    assert [(row.prompt, row.images) for row in read_images(tmp_path)] == [("a pear", (tmp_path / "w" / "a.png",))]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no images of a known form. Images can be:\n  a folder with SPLIT-images"),
        ({"notes.txt": b"hello"}, "holds no images"),
        ({"d.csv": b"image,size\na.png,3\n"}, "(?s)d.csv: the columns image, size match no.*Images can be:"),
        ({"d.parquet": b"PAR1"}, "d.parquet cannot be read as parquet"),
    ],
)
def test_what_is_no_source(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_images(tmp_path)


def test_names_that_are_no_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent.parquet does not exist"):
        read_images(tmp_path / "absent.parquet")
    (tmp_path / "one.png").write_bytes(b"")
    with pytest.raises(ValueError, match="one.png holds no images of a known form"):
        read_images(tmp_path / "one.png")
    with pytest.raises(ValueError, match="max_rows must be 1 or above, got 0"):
        read_images(tmp_path, max_rows=0)


class ClassEncoder:
    """Images as they are, prompts as class numbers."""

    identity = "classes"

    def encode_pictures(self, images: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        return images

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        labels = torch.tensor([int(prompt) for prompt in prompts])
        return {"labels": labels, "embeds": labels[:, None] / 3}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_single_images_are_encoded_and_labels_survive_the_cache(
    parquet: Callable[..., Path], image_bytes: MakeImage, tmp_path: Path, dtype: str
) -> None:
    """bfloat16 has 8 bits: 999 would be 1000, and above 256 every second class its neighbour."""
    rows = read_images(parquet({"image": [image_bytes(0), image_bytes(255)], "label": [999, 257]}))
    store = TensorStore(tmp_path / "cache")
    data = encode_preferences(rows, ClassEncoder(), store, Framing(6), dtype=dtype)
    groups = [data.group(place, mirrored=False) for place in range(2)]
    x0 = torch.stack([images for images, _, _ in groups]).float()
    assert x0.shape == (2, 1, 3, 6, 6) and [scores for _, _, scores in groups] == [(1.0,)] * 2
    assert x0.mean((1, 2, 3, 4)).tolist() == [-1.0, 1.0]
    cond = collate([groups[0][1], groups[1][1], {"labels": torch.tensor(1000), "embeds": torch.zeros(1)}])
    assert cond["labels"].tolist() == [999.0, 257.0, 1000.0]
    stored = TensorStore(tmp_path / "cache").get(data.groups[0].prompt)
    assert stored["labels"].dtype == torch.int64 and stored["labels"].item() == 999
    assert stored["embeds"].dtype == getattr(torch, dtype)
