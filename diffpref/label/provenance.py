"""The versions that a marker records: what a shard was made with, not what it depends on."""

import platform
from functools import cache
from importlib import metadata

PACKAGES = ("diffpref", "torch", "diffusers", "transformers", "open_clip_torch", "pillow", "pyarrow")


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = [("python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def versions() -> dict[str, dict[str, str]]:
    """{"versions": package -> version} of this installation."""
    return {"versions": dict(_versions())}
