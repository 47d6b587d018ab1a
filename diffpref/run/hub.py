"""A finished run on the Hugging Face hub: asked for before the start, put there after the end."""

from pathlib import Path

from diffpref.files.hub import stay_local_if_unreachable

LEFT_OUT = ("checkpoint-*", "cache/*", "logs/*", "inversions/*", "round-*", ".*", "*.tmp")
"""What of an output directory stays here: what only a continued run needs."""


def open_page(name: str, *, private: bool) -> str:
    """Make the page where there is none, and return its whole name, OWNER/NAME: whoever may not write learns it now.

    Args:
        name: OWNER/NAME, or NAME for the owner of the token.

    Raises:
        ValueError: no token, a hub that does not answer, or one that refuses; says which and what to do.
    """
    import huggingface_hub
    from httpx2 import HTTPError
    from huggingface_hub.errors import HFValidationError

    if huggingface_hub.get_token() is None:
        raise ValueError(
            "push_to_hub needs a token that may write: run `hf auth login`, or set HF_TOKEN in the environment."
        )
    stay_local_if_unreachable()
    try:
        return huggingface_hub.HfApi().create_repo(name, private=private or None, exist_ok=True).repo_id
    except (OSError, HTTPError, HFValidationError) as problem:
        raise ValueError(
            f"push_to_hub: {name} cannot be written on the hub ({_short(problem)}). Check hub_model_id, the token's "
            "rights and the network, or leave push_to_hub out and use `hf upload` later."
        ) from None


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
            ignore_patterns=[pattern for text in LEFT_OUT for pattern in (text, f"{text}/*")],
        )
    except (OSError, HTTPError) as problem:
        left = " ".join(f"--exclude '{text}'" for text in LEFT_OUT)
        raise ValueError(
            f"{folder} is complete, but could not be put on the hub ({_short(problem)}). Try again with: "
            f"hf upload {name} {folder} . {left}"
        ) from None
    return f"{huggingface_hub.constants.ENDPOINT}/{name}"


def _short(problem: Exception) -> str:
    """The reason, on one line."""
    return " ".join(str(problem).split())[:300] or type(problem).__name__
