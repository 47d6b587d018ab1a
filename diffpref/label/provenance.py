"""What a shard was made with: the versions that its marker records, and the code that a user has written."""

import inspect
import platform
from pathlib import Path

from diffpref.files.identity import file_hash, installed

PACKAGES = ("diffpref", "torch", "diffusers", "transformers", "open_clip_torch", "pillow", "pyarrow")


def versions() -> dict[str, dict[str, str]]:
    """{"versions": package -> version} of this installation."""
    return {"versions": {"python": platform.python_version(), **installed(PACKAGES)}}


def own_code(member: object) -> dict[str, str]:
    """{"code": the SHA-256 of the file} of a choice that a user has written, {} of the package's: other code of a
    user's may give other bytes."""
    cls = type(member)
    source = None if cls.__module__.partition(".")[0] == "diffpref" else inspect.getsourcefile(cls)
    return {"code": file_hash(Path(source))} if source else {}
