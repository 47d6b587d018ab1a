"""Forms of a pack: how the labelled images of a prompt become rows that training reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from diffpref.data.rows import Row
from diffpref.settings.axis import Axis

if TYPE_CHECKING:
    import pyarrow as pa

Labelled: TypeAlias = Mapping[str, Any]
"""One row of the labels whose phi is not null."""
Read: TypeAlias = Callable[[Labelled], bytes]
"""Returns the PNG of a labelled image."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What the prompts of a run have in common."""

    candidates: int
    """Images that were planned for each prompt."""
    rewards: Sequence[str]
    """The names of the rewards, held-out ones too."""


@runtime_checkable
class Form(Protocol):
    """A frozen dataclass of what this form needs."""

    def check(self, candidates: int) -> None:
        """Raise ValueError where prompts of that many images can never give a row."""
        ...

    def schema(self, contest: Contest) -> "pa.Schema":
        """The columns of the parquet file."""
        ...

    def records(self, rows: Sequence[Labelled], read: Read, contest: Contest) -> Iterator[dict[str, object]]:
        """The rows of one prompt, whose labelled images come best first."""
        ...


def row_of(some: Sequence[Labelled], read: Read) -> Row:
    """Labelled images of one prompt as a row of preferences."""
    return Row(
        prompt=some[0]["prompt"],
        images=tuple(read(row) for row in some),
        scores=tuple(row["phi"] for row in some),
        where="",
        models=tuple(row["generator"] for row in some),
    )


FORM = Axis(
    "form",
    {
        "lists": "diffpref.label.forms.lists:Lists",
        "pairs": "diffpref.label.forms.pairs:Pairs",
        "pickapic": "diffpref.label.forms.pickapic:PickaPic",
    },
)
