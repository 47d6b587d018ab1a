"""Which prompts of a source are labelled: no repeats, nothing of an evaluation set, and how long each one is."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

from diffpref.files.identity import sha256

Status: TypeAlias = Literal["ok", "duplicate", "near_duplicate", "evaluation_set", "too_long"]


@dataclass(frozen=True)
class PromptSettings:
    """Which prompts are labelled."""

    prompts: str
    """A .txt with one prompt a line, a .tsv, .csv, .json, .jsonl or .parquet with a prompt column, or a data set."""
    split: str = "train"
    """The data set's split."""
    max_prompts: int | None = None
    """Stop after this many prompts that are kept."""
    near_duplicates: Literal["drop", "flag"] = "drop"
    """What happens to a prompt that says nearly the same as an earlier one."""
    similarity: float = 0.8
    """Prompts are near-duplicates where they share this part of their pairs of neighbouring words, in (0, 1]."""
    max_tokens: int = 77
    """CLIP tokens, start and end included, that a text encoder reads; what is beyond is cut off there."""
    too_long: Literal["flag", "drop"] = "flag"
    """What happens to a prompt of more tokens."""
    exclude: tuple[str, ...] = ()
    """Evaluation sets, each a file as `prompts`: what equals one of their prompts, or nearly does, is left out."""

    def __post_init__(self) -> None:
        if self.max_prompts is not None and self.max_prompts < 1:
            raise ValueError(f"max_prompts must be 1 or above, got {self.max_prompts}; leave it out to take all.")
        if not 0 < self.similarity <= 1:
            raise ValueError(f"similarity must be above 0 and at most 1, got {self.similarity}.")
        if self.max_tokens < 3:
            raise ValueError(f"max_tokens must be 3 or above (start, a word, end), got {self.max_tokens}.")
        for name in ("near_duplicates", "too_long"):
            if getattr(self, name) not in ("drop", "flag"):
                raise ValueError(f'{name} must be "drop" or "flag", got {getattr(self, name)!r}.')


@dataclass(frozen=True)
class CheckedPrompt:
    """One row of the source and what becomes of it."""

    prompt_id: str
    """The first 16 hexadecimal digits of SHA-256 of the prompt in UTF-8; rows of one text share it."""
    prompt: str
    """In Unicode's form NFC, without spaces around it."""
    status: Status
    kept: bool
    tokens: int
    """CLIP tokens with start and end, nothing cut off."""
    detail: str
    """Which row or which evaluation set it repeats; "" where it repeats none."""
    row: int
    """Its number in the source, from 0; rows without a prompt count, and are left out."""


def prompt_id(prompt: str) -> str:
    """The first 16 hexadecimal digits of SHA-256 of the prompt's NFC form in UTF-8."""
    return sha256(unicodedata.normalize("NFC", prompt))[:16]


def check_prompts(settings: PromptSettings) -> list[CheckedPrompt]:
    """Every row with a prompt in the source's order, up to the last one that `max_prompts` lets in.

    Of prompts that repeat one another (equal but for case and spaces, or near) the first is kept. The first status that
    fits is given: evaluation_set, duplicate, too_long where that drops, near_duplicate, too_long where it flags. A
    prompt is compared with those that have none of the first four.

    Raises:
        ValueError: no prompts named, none in the source, none kept, or an evaluation set that is missing or empty.
    """
    from diffpref.data.prompts import prompt_rows

    if not settings.prompts:
        raise ValueError("prompts is empty: name a file of prompts, one a line.")
    excluded = [(Path(source).name, text) for source in settings.exclude for text in _evaluation_set(source)]
    rows = [(i, _nfc(text)) for i, text in enumerate(prompt_rows(settings.prompts, split=settings.split)) if text]
    if not rows:
        raise ValueError(f"{settings.prompts} holds no prompt: give one a line in a .txt file.")
    judge, count, kept = _Judge(settings, excluded, rows), token_counter(), 0
    checked: list[CheckedPrompt] = []
    for i, (row, text) in enumerate(rows):
        tokens = count(text)
        status, keep, detail = judge(i, tokens)
        checked.append(CheckedPrompt(prompt_id(text), text, status, keep, tokens, detail, row))
        kept += keep
        if kept == settings.max_prompts:
            break
    if not kept:
        raise ValueError(
            f"{settings.prompts}: none of {len(checked)} prompts is kept ({checked[0].prompt!r:.80} has the status "
            f"{checked[0].status}): loosen exclude, similarity or too_long, or give other prompts."
        )
    return checked


class _Judge:
    """Knows every prompt, and after each call those that later ones must not repeat."""

    def __init__(
        self, settings: PromptSettings, excluded: Sequence[tuple[str, str]], rows: Sequence[tuple[int, str]]
    ) -> None:
        from diffpref.labelling.minhash import NearIndex, shingle

        self.settings, self.excluded, self.rows = settings, excluded, rows
        self.firsts: dict[str, int] = {}
        # In the index the evaluation sets' prompts stand before the source's.
        texts = [text for _, text in excluded] + [text for _, text in rows]
        self.own = NearIndex(shingle(texts), settings.similarity)
        self.sets, self.members = self.own.empty_copy(), {_key(text): (name, text) for name, text in excluded[::-1]}
        for i in range(len(excluded)):
            self.sets.add(i)

    def __call__(self, i: int, tokens: int) -> tuple[Status, bool, str]:
        """Status of the source's prompt i, whether it is kept, and what it repeats."""
        settings, place, key = self.settings, len(self.excluded) + i, _key(self.rows[i][1])
        if key in self.members:
            return "evaluation_set", False, ": ".join(self.members[key])
        if (found := self.sets.nearest(place)) is not None:
            name, text = self.excluded[found[0]]
            return "evaluation_set", False, f"{name}, similarity {found[1]:.2f}: {text}"
        if (first := self.firsts.setdefault(key, i)) != i:
            return "duplicate", False, f"row {self.rows[first][0]}: {self.rows[first][1]}"
        long = tokens > settings.max_tokens
        if long and settings.too_long == "drop":
            return "too_long", False, ""
        if (found := self.own.nearest(place)) is not None:
            row, text = self.rows[found[0] - len(self.excluded)]
            keep = settings.near_duplicates == "flag"
            return "near_duplicate", keep, f"row {row}, similarity {found[1]:.2f}: {text}"
        self.own.add(place)
        return "too_long" if long else "ok", True, ""


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _key(text: str) -> str:
    """Equal for texts that differ in case, spacing and Unicode form alone."""
    return unicodedata.normalize("NFC", " ".join(text.casefold().split()))


def _evaluation_set(source: str) -> Sequence[str]:
    from diffpref.data.prompts import read_prompts

    try:
        return [_nfc(text) for text in read_prompts(source)]
    except ValueError as problem:
        raise ValueError(f"exclude: {problem}") from None


@cache
def token_counter() -> Callable[[str], int]:
    """A function of a text that returns its CLIP tokens with start and end, nothing cut off."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    return lambda text: len(tokenizer.encode(text)) + 2
