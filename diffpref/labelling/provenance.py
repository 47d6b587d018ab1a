"""The versions that a marker records: what a shard was made with, not what it depends on."""

import platform

from diffpref.files.identity import installed

PACKAGES = ("diffpref", "torch", "diffusers", "transformers", "open_clip_torch", "pillow", "pyarrow")


def versions() -> dict[str, dict[str, str]]:
    """{"versions": package -> version} of this installation."""
    return {"versions": {"python": platform.python_version(), **installed(PACKAGES)}}
