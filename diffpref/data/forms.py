"""The forms of data that an objective learns from: how rows are arranged for it, and which rows it can use."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from diffpref.data.pairs import Pairing, as_pairs
from diffpref.data.rows import Preferences
from diffpref.types import Objective


@runtime_checkable
class Form(Protocol):
    """What the groups of an objective hold."""

    compares: ClassVar[bool]
    """Whether a row whose images all have the same score teaches nothing."""
    usual: ClassVar[int]
    """Images of a group, where no data have been read yet."""

    def arrange(self, rows: Preferences, *, lists: Pairing) -> Preferences:
        """The rows as the objective takes them; `lists` says how a list becomes pairs."""
        ...

    def check(self, rows: Preferences, method: str) -> None:
        """Raise ValueError where arranged rows have a number of images that the method cannot use."""
        ...


@dataclass(frozen=True)
class Pairs:
    """Two images of a prompt, one better than the other."""

    compares: ClassVar[bool] = True
    usual: ClassVar[int] = 2

    def arrange(self, rows: Preferences, *, lists: Pairing) -> Preferences:
        return as_pairs(rows, lists=lists)

    def check(self, rows: Preferences, method: str) -> None:
        assert all(len(scores) == 2 for scores in rows.scores), "as_pairs makes pairs"


@dataclass(frozen=True)
class ChainPairs:
    """Two steps of sampler chains of a prompt: made while the model samples, so no data set is arranged for it."""

    compares: ClassVar[bool] = True
    usual: ClassVar[int] = 2

    def arrange(self, rows: Preferences, *, lists: Pairing) -> Preferences:
        return rows

    def check(self, rows: Preferences, method: str) -> None:
        assert all(len(scores) == 2 for scores in rows.scores), "chains are paired when they are stored"


@dataclass(frozen=True)
class Lists:
    """Three or more images of a prompt, as many for every prompt."""

    compares: ClassVar[bool] = True
    usual: ClassVar[int] = 4

    def arrange(self, rows: Preferences, *, lists: Pairing) -> Preferences:
        return rows

    def check(self, rows: Preferences, method: str) -> None:
        lengths = Counter(len(scores) for scores in rows.scores)
        if max(lengths) <= 2:
            raise ValueError(
                f"{rows.source}: {method} ranks lists of three or more images, these rows have "
                f"{'pairs' if 2 in lengths else 'one image'}: use objective: dpo (or smpo with rewards), "
                "or data with longer lists."
            )
        if len(lengths) > 1:
            (usual, most), *others = lengths.most_common()
            few = ", ".join(f"{count} of {length}" for length, count in sorted(others))
            odd = next(position for position, scores in enumerate(rows.scores) if len(scores) != usual)
            raise ValueError(
                f"{rows.source}: {method} needs lists of one length, but there are {most} rows of {usual} images and "
                f"{few} (the first is {rows[odd].where}): split the data by length and train on one part, or use "
                "objective: dpo, which compares two images at a time."
            )


@dataclass(frozen=True)
class RealFake:
    """Real images, each of which is compared with a sample of the model's own."""

    compares: ClassVar[bool] = False
    usual: ClassVar[int] = 2

    def arrange(self, rows: Preferences, *, lists: Pairing) -> Preferences:
        return rows

    def check(self, rows: Preferences, method: str) -> None:
        """Any row will do."""


FORMS: Mapping[str, Form] = {
    "pairs": Pairs(),
    "lists": Lists(),
    "chain_pairs": ChainPairs(),
    "real_fake": RealFake(),
}
"""The value of an objective's `candidates` -> its form."""


def form_of(objective: Objective) -> Form:
    """The form that the objective's `candidates` names.

    Raises:
        ValueError: there is no such form.
    """
    name = objective.candidates
    if name not in FORMS:
        raise ValueError(f"{type(objective).__name__}.candidates must be one of {', '.join(FORMS)}, got {name!r}.")
    return FORMS[name]
