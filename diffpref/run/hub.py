"""A finished run on the Hugging Face hub: asked for before the start, put there after the end."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffpref.files.hub import stay_local_if_unreachable

LEFT_OUT = ("checkpoint-*", "cache/*", "logs/*", "drift/*", "inversions/*", "round-*", ".*", "*.tmp")
"""What of an output directory stays here: what only a continued run needs."""


@dataclass(frozen=True)
class Asker:
    """Who asks for a page, for messages."""

    name: str
    """The setting or the command."""
    remedy: str
    """What to check where the page cannot be written."""


TRAINING = Asker(
    "push_to_hub",
    "Check hub_model_id, the token's rights and the network, or leave push_to_hub out and use `diffpref push` later.",
)


def open_page(name: str, *, private: bool, asker: Asker = TRAINING) -> str:
    """Make the page where there is none, and return its whole name, OWNER/NAME: whoever may not write learns it now.

    Args:
        name: OWNER/NAME, or NAME for the owner of the token.

    Raises:
        ValueError: no token, one that may only read, a hub that does not answer, or one that refuses; says which and
            what to do.
    """
    import huggingface_hub
    from httpx2 import HTTPError
    from huggingface_hub.errors import HFValidationError

    if huggingface_hub.get_token() is None:
        raise ValueError(
            f"{asker.name} needs a token that may write: run `hf auth login`, or set HF_TOKEN in the environment."
        )
    stay_local_if_unreachable()
    try:
        # A page that is there already is given to readers too, and only the upload would fail.
        if not _may_write(huggingface_hub.HfApi().whoami()):
            raise ValueError(
                f"{asker.name}: the token may read, not write: make one with the role write on the hub's page of "
                "tokens, and run `hf auth login`, or set HF_TOKEN."
            )
        return huggingface_hub.HfApi().create_repo(name, private=private or None, exist_ok=True).repo_id
    except (OSError, HTTPError, HFValidationError) as problem:
        raise ValueError(
            f"{asker.name}: {name} cannot be written on the hub ({_short(problem)}). {asker.remedy}"
        ) from None


def _may_write(account: Mapping[str, Any]) -> bool:
    """Whether the hub's answer on a token leaves room for writing; what it does not say is left to the upload."""
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "fineGrained":
        given = token.get("fineGrained", {})
        scopes = [given.get("global", []), *(scope.get("permissions", []) for scope in given.get("scoped", []))]
        return any("repo.write" in permissions for permissions in scopes)
    return token.get("role") != "read"


def uploaded(folder: Path) -> list[str]:
    """The files of a run that go up, by their paths in the folder."""
    from huggingface_hub.utils import filter_repo_objects

    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return list(filter_repo_objects(files, ignore_patterns=_ignored()))


def _ignored() -> list[str]:
    return [pattern for text in LEFT_OUT for pattern in (text, f"{text}/*")]


def push(folder: Path, name: str) -> str:
    """Put a finished run's folder there, and return the address of the page.

    Raises:
        ValueError: the hub refuses or does not answer; the run is complete all the same, and the command that tries
            again is named.
    """
    import huggingface_hub
    from httpx2 import HTTPError

    try:
        huggingface_hub.HfApi().upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Trained on preferences with diffpref",
            ignore_patterns=_ignored(),
        )
    except (OSError, HTTPError) as problem:
        raise ValueError(
            f"{folder} is complete, but could not be put on the hub ({_short(problem)}). Try again with: "
            f"diffpref push {folder} --repo_id {name}"
        ) from None
    return f"{huggingface_hub.constants.ENDPOINT}/{name}"


def _short(problem: Exception) -> str:
    """The reason, on one line."""
    return " ".join(str(problem).split())[:300] or type(problem).__name__
