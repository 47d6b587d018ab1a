"""What the data tests share: small real images and writers of source files."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from PIL import Image

MakeImage = Callable[..., bytes]


@pytest.fixture
def image_bytes() -> MakeImage:
    """Encoded bytes of a one-colour image; a PNG's grey level survives exactly."""

    def make(level: int, size: tuple[int, int] = (8, 6), kind: str = "PNG") -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", size, (level, level, level)).save(stream, kind)
        return stream.getvalue()

    return make


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Path]:
    """Writes columns to a parquet file the way `datasets` does, `{bytes, path}` structs for Image features."""

    def write(columns: dict, name: str = "pairs.parquet", features: dict | None = None) -> Path:
        known = datasets.Features(features) if features else None
        datasets.Dataset.from_dict(columns, features=known).to_parquet(tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def json_file(tmp_path: Path) -> Callable[..., Path]:
    def write(records: list[dict], name: str = "train.json") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jsonl":
            path.write_text("\n".join(json.dumps(record) for record in records))
        else:
            path.write_text(json.dumps(records))
        return path

    return write
