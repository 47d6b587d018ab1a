"""What a result depends on besides its settings: every hash of the package, and the versions of packages."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

_BLOCK = 2**20


def sha256(content: str | bytes) -> str:
    """The SHA-256 of a text (in UTF-8) or of bytes, in hexadecimal digits."""
    return hashlib.sha256(_encoded(content)).hexdigest()


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def files_hash(files: Sequence[Path]) -> str:
    """The SHA-256 of each file in hexadecimal digits, with its name where there are several."""
    return " ".join(file_hash(path) if len(files) == 1 else f"{path.name}:{file_hash(path)}" for path in files)


def content_key(*parts: str | bytes) -> str:
    """A hash of the parts in their order; no two different lists of parts have the same."""
    digest = hashlib.sha256()
    for part in map(_encoded, parts):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:32]


def value_hash(value: object) -> str:
    """A short name of a value that JSON can hold: equal for equal values."""
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str))[:16]


def hash_bit(text: str, *, byte: int = 0) -> int:
    """0 or 1, either for about half of all texts: the lowest bit of one byte of the text's SHA-256."""
    return hashlib.sha256(_encoded(text)).digest()[byte] & 1


def _encoded(content: str | bytes) -> bytes:
    # Prompts from the web may hold half of a surrogate pair, which plain UTF-8 refuses.
    return content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content


def installed(packages: Sequence[str]) -> dict[str, str]:
    """The versions of those of the packages that are installed, in order."""
    return {package: version for package in packages if (version := _version(package)) is not None}


@cache
def _version(package: str) -> str | None:
    # Every shard names the versions, and to find one reads and parses a package's whole description.
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
