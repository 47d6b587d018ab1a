"""Whether a name can be one on the hub, and whether the hub can be asked."""

import re
import socket
import urllib.request
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from diffpref.files.embedded import embedded

_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FOLDERS = ("assets", "checkpoints", "configs", "data", "datasets", "models", "output", "outputs", "runs")
"""First parts that are taken for those of a path here: nobody waits for a hub because a folder is missing."""


def may_be_hub_name(name: str) -> bool:
    """Whether OWNER/NAME can be meant, which nothing here has the path of.

    What begins with a folder that is here, or with one of `FOLDERS`, is a path; so is all that has another form."""
    first = name.partition("/")[0]
    return _NAME.fullmatch(name) is not None and first not in FOLDERS and not Path(first).is_dir()


def cached_name(path: Path) -> str | None:
    """OWNER/NAME of the repository of the hub's cache that a path lies in; None for a path elsewhere."""
    cached = [part for part in path.parts if part.startswith("models--")]
    return cached[-1].removeprefix("models--").replace("--", "/") if cached else None


def missing_path(name: str) -> str:
    """What is missing at a path: the first of its folders that is not there, or the last part.

    A path of the repository, given in another folder, is named as it lies in the installation."""
    path = Path(name).expanduser()
    missing = next((parent for parent in reversed(path.parents) if not parent.exists()), None)
    found = f"there is no {path.name} in {path.parent.absolute()}"
    if missing is not None:
        found = f"there is no folder {missing.absolute()}"
    if path.parts[:1] == ("assets",) and (own := embedded("assets").parent / path).exists():
        found += f"; the one that comes with diffpref is {own}"
    return found


PATIENCE = 3.0
"""Seconds that the hub has to take a connection."""


def stay_local_if_unreachable() -> None:
    """Where the hub takes no connection, let its libraries use their caches alone, as with HF_HUB_OFFLINE=1.

    By themselves they try each file six times, with waits that double: half a minute for a name that is misspelt."""
    import huggingface_hub.constants as hub

    if hub.HF_HUB_OFFLINE or _reachable(hub.ENDPOINT):
        return
    import datasets.config

    hub.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


@cache
def _reachable(endpoint: str) -> bool:
    address = urlsplit(endpoint)
    # A proxy knows hosts that this machine does not.
    if urllib.request.getproxies().get(address.scheme) or address.hostname is None:
        return True
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True
