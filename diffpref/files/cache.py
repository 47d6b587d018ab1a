"""The user's cache: what can be made again, kept between runs."""

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """The folder of this name in the package's part of the user's cache, XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "diffpref" / name
