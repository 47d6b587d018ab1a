"""Shards on the disk: data files that appear whole, and beside them done-markers that say what they were made from.

A marker is written last. It holds the settings and inputs that the shard depends on, and the SHA-256 of every data
file, so that a rerun knows what is done, what is stale, and what a hand has edited. Data files hold no clock time, no
host and no path: two runs of one plan write the same bytes; times and versions stand in the marker.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffpref.files import atomic
from diffpref.files.identity import file_hash, value_hash

WEIGHTS = {".safetensors", ".bin", ".json", ".txt", ".model", ".pt", ".pth", ".ckpt"}
"""Suffixes of the files of a model's folder that its results depend on."""


def content_of(name: str | Path, hashes: Callable[[Path], str] = file_hash) -> str:
    """A digest of a local file's content, or of the weights and settings in a local folder."""
    path = Path(name).expanduser()
    if path.is_file():
        return hashes(path)
    files = sorted(file for file in path.rglob("*") if file.suffix in WEIGHTS)
    return value_hash([[file.relative_to(path).as_posix(), hashes(file)] for file in files])


class FileHashes:
    """SHA-256 of files, remembered by size and time, so that a rerun does not read gigabytes of weights again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".hashes.json"
        try:
            self.known: dict[str, list[Any]] = json.loads(self.path.read_text())
        except (OSError, ValueError):
            self.known = {}

    def __call__(self, file: Path) -> str:
        state = file.stat()
        seen = [state.st_size, state.st_mtime_ns]
        kept = self.known.get(str(file.resolve()))
        if kept is None or kept[:2] != seen:
            kept = self.known[str(file.resolve())] = [*seen, file_hash(file)]
        return kept[2]

    def save(self) -> None:
        atomic.write_json(self.path, self.known)


@contextmanager
def durable(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path`, written through to the disk, when the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as temporary:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


def write_table(path: Path, table: pa.Table) -> None:
    """Replace a parquet file; equal tables give equal bytes."""
    with durable(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


@dataclass(frozen=True)
class Marker:
    """What a finished shard says of itself."""

    settings: str
    """Digest of what the user set."""
    inputs: str
    """Digest of the hashes of the files that it was made from."""
    files: Mapping[str, Mapping[str, Any]]
    """Path relative to the run's folder -> bytes and sha256."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Rows by status."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Seconds, versions, provenance: nothing that the data depends on."""


@dataclass(frozen=True)
class Shard:
    """One shard of one stage in the folder of a run."""

    root: Path
    stage: str
    """Like "images/sdxl"; also the folder of the data files."""
    number: int

    @property
    def name(self) -> str:
        """What error messages call it."""
        return f"{self.stage}/{self.number:05d}"

    def path(self, suffix: str) -> Path:
        """A data file of the shard, like path(".parquet")."""
        return self.root / self.stage / f"{self.number:05d}{suffix}"

    @property
    def marker_path(self) -> Path:
        return self.root / "done" / self.stage / f"{self.number:05d}.json"

    def marker(self) -> Marker | None:
        """The marker, or None where the shard is not done.

        Raises:
            ValueError: the marker cannot be read, or a data file has another size than it says.
        """
        try:
            text = self.marker_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            marker = Marker(**json.loads(text))
            sizes = {name: int(entry["bytes"]) for name, entry in marker.files.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"{self.marker_path} was edited or damaged: delete it; the shard is made again.") from None
        for name, size in sizes.items():
            path = self.root / name
            if not path.exists():
                return None
            if path.stat().st_size != size:
                raise self._edited(path, f"it has {path.stat().st_size} bytes, its marker says {size}")
        return marker

    def verify(self, *suffixes: str) -> Marker:
        """The marker of a finished shard whose data files are the ones that were written, byte for byte.

        Args:
            suffixes: look at these files alone, such as ".parquet".

        Raises:
            ValueError: the shard is not done, or a file of it was changed.
        """
        marker = self.marker()
        if marker is None:
            raise ValueError(f"{self.root / self.stage}: shard {self.number:05d} is not done: run the stage before it.")
        for name, entry in marker.files.items():
            if (not suffixes or name.endswith(suffixes)) and file_hash(self.root / name) != entry["sha256"]:
                raise self._edited(self.root / name, "its SHA-256 is not its marker's")
        return marker

    def _edited(self, path: Path, what: str) -> ValueError:
        return ValueError(
            f"{path} was changed after it was written: {what}. Restore the file; or delete {self.marker_path}, and "
            "this shard alone is made again."
        )

    def finish(
        self,
        suffixes: Sequence[str],
        *,
        settings: str,
        inputs: str,
        counts: Mapping[str, int],
        about: Mapping[str, Any],
    ) -> None:
        """Write the marker: the data files with these suffixes are complete."""
        files = {}
        for suffix in suffixes:
            path = self.path(suffix)
            name = path.relative_to(self.root).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        value = {"settings": settings, "inputs": inputs, "files": files, "counts": dict(counts), "about": dict(about)}
        self.marker_path.parent.mkdir(parents=True, exist_ok=True)
        with durable(self.marker_path) as temporary:
            temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def forget(self) -> None:
        """Remove the marker: the shard counts as not done."""
        self.marker_path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a killed process left of this shard under temporary names."""
        for folder in (self.path("").parent, self.marker_path.parent):
            for left in folder.glob(f".{self.number:05d}.*.tmp"):
                left.unlink(missing_ok=True)


def inputs_of(markers: Sequence[Marker]) -> str:
    """The digest of the data files of other shards, by their hashes."""
    return value_hash([[entry["sha256"] for _, entry in sorted(marker.files.items())] for marker in markers])
