"""What a result depends on beside its settings: the content of files, and the versions of packages."""

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

_BLOCK = 2**20


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


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
