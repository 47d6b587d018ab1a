"""What a result depends on beside its settings: the content of files, and the versions of packages."""

import hashlib
from collections.abc import Sequence
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
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
