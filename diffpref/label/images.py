"""Images in webdataset tars: lossless, in a fixed order, and equal bytes for equal images."""

import io
import json
import tarfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from diffpref.data.decode import decode
from diffpref.label.plan import Plan
from diffpref.label.shards import Marker, Shard

PNG_LEVEL = 1
"""zlib's fastest level: at 1024 x 1024 a higher one takes several times as long for a few percent."""
_ENCODERS = 2


def encode(image: Image.Image) -> bytes:
    """The image as PNG, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


class TarWriter:
    """A tar that is written in the order of `add`, while threads encode the images and the caller draws the next."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        self._threads = ThreadPoolExecutor(_ENCODERS)
        self._waiting: list[tuple[str, Future[bytes], bytes]] = []

    def add(self, image_id: str, image: Image.Image, about: Mapping[str, Any]) -> None:
        """Append `image_id`.json and .png; a webdataset reader gives both as one sample."""
        text = json.dumps(dict(about), ensure_ascii=False, sort_keys=True).encode()
        self._waiting.append((image_id, self._threads.submit(encode, image), text))
        # What is encoded goes to the disk, in order; the rest waits, up to a bound.
        while self._waiting and (self._waiting[0][1].done() or len(self._waiting) > 64):
            self._write(*self._waiting.pop(0))

    def _write(self, image_id: str, image: Future[bytes], text: bytes) -> None:
        for suffix, data in ((".json", text), (".png", image.result())):
            member = tarfile.TarInfo(image_id + suffix)
            member.size, member.mtime, member.mode = len(data), 0, 0o644
            self._tar.addfile(member, io.BytesIO(data))

    def __enter__(self) -> "TarWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for entry in self._waiting:
                    self._write(*entry)
                self._tar.close()
                self._file.close()
        finally:
            self._threads.shutdown(cancel_futures=True)
            # A disk that is full refuses what is still buffered too, and would hide the first problem.
            with suppress(OSError):
                self._file.close()


class TarReader:
    """Images of a tar by id; the index is read once, an image when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "r:")
        self._members = {member.name: member for member in self._tar.getmembers()}

    def data(self, image_id: str) -> bytes:
        """The PNG's bytes."""
        file = self._tar.extractfile(self._members[f"{image_id}.png"])
        assert file is not None, "members are regular files"
        return file.read()

    def image(self, image_id: str) -> Image.Image:
        """The decoded image in RGB."""
        return decode(self.data(image_id))

    def close(self) -> None:
        self._tar.close()


class Source:
    """The images of one generator in a shard, verified against their marker, by prompt."""

    def __init__(self, root: Path, number: int, generator: str) -> None:
        shard = Shard(root, f"images/{generator}", number)
        shard.verify()
        self.reader = TarReader(shard.path(".tar"))
        table = pq.read_table(shard.path(".parquet"), columns=["image_id", "prompt_id", "status"])
        self._rows: dict[str, list[tuple[str, str]]] = {}
        for image_id, prompt_id, status in zip(*(table.column(i).to_pylist() for i in range(3)), strict=True):
            self._rows.setdefault(prompt_id, []).append((image_id, status))

    def of(self, prompt_id: str) -> list[tuple[str, str]]:
        """(image id, status) of each planned image of the prompt."""
        return self._rows[prompt_id]


def images_markers(plan: Plan, number: int) -> list[Marker]:
    """The markers of a shard's images, one for each generator.

    Raises:
        ValueError: images that are not drawn yet.
    """
    markers = []
    for generator in plan.generators:
        marker = Shard(plan.root, f"images/{generator.name}", number).marker()
        if marker is None:
            raise ValueError(
                f"{plan.root}: the images of {generator.name!r} in shard {number:05d} are not drawn: run the stage "
                "images first."
            )
        markers.append(marker)
    return markers
