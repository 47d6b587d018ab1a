"""How many tokens a caption has, and how many the text encoder reads."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CLIP_LIMIT = 77
"""Tokens that CLIP's text encoder reads, its start and end among them."""
T5_LIMIT = 256
"""Tokens of T5 that SD3 reads by default (`max_sequence_length`)."""
_PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE)
"""CLIP's tokens never cross these pieces: letters, single digits, and runs of other signs."""


@dataclass(frozen=True)
class TokenCount:
    """Counts the tokens of a caption."""

    count: Callable[[str], int]
    """Of a caption, start and end among them."""
    limit: int
    """Tokens that are read; the rest is cut off."""
    how: str
    """Whose count it is, for people."""


def by_words() -> TokenCount:
    """A count without a model: every piece of CLIP's rule has one token or more, so this many are certain."""
    how = "counted by words: at least so many tokens; name the model for the exact count"
    return TokenCount(lambda text: len(_PIECES.findall(text)) + 2, CLIP_LIMIT, how)


def of_model(source: str, *, revision: str | None = None, longest: int = T5_LIMIT) -> TokenCount | None:
    """The count of a pipeline's own tokenizer, of the one that reads furthest; None where the pipeline has none.

    Args:
        source: the pipeline's folder, or its name on the hub.
        longest: tokens that are read where the tokenizer itself has no lower limit (T5).
    """
    from transformers import AutoTokenizer

    local, found = Path(source).is_dir(), []
    for part in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        if local and not (Path(source) / part).is_dir():
            continue
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, subfolder=part, revision=revision)
        except (OSError, ValueError):
            break  # the hub has no such part
        found.append((min(int(tokenizer.model_max_length), longest), tokenizer))
    if not found:
        return None
    limit, reader = max(found, key=lambda one: one[0])
    name = f"counted by the tokenizer of {source}"
    return TokenCount(lambda text: len(reader(text, verbose=False)["input_ids"]), limit, name)
