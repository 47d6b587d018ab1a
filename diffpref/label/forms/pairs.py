"""Form `pairs`: two images of a prompt in each row, the better one named."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Le

from diffpref.data.convert import RECORD_FORMS
from diffpref.label.forms import Contest, Labelled, Read, row_of

if TYPE_CHECKING:
    import pyarrow as pa

RECORDS = RECORD_FORMS["pairs"]


@dataclass(frozen=True)
class Selection:
    """Which two images of a prompt are compared."""

    pairs: Literal["all", "best_worst"] = "all"
    """Every two images of a prompt, or its extremes only."""
    min_gap: Annotated[float, Ge(0), Le(1)] = 0.0
    """Leave out pairs whose phi differ by less."""
    same_generator: bool = False
    """Only pairs by one generator, so that no style is taught."""

    def check(self, candidates: int) -> None:
        """Two images make a pair."""

    def select(self, rows: Sequence[Labelled]) -> list[tuple[Labelled, Labelled]]:
        """(better, worse) of the pairs that are asked for; equal phi are no pair."""
        groups: dict[str, list[Labelled]] = {}
        for row in rows:
            groups.setdefault(row["generator"] if self.same_generator else "", []).append(row)
        selected = []
        for group in groups.values():
            extremes = self.pairs == "best_worst" and len(group) > 1
            pairs = [(group[0], group[-1])] if extremes else combinations(group, 2)
            # phi is a sum of fractions: a gap of 2/15 must not be missed by its last bit.
            gap = max(self.min_gap - 1e-12, 1e-12)
            selected += [(better, worse) for better, worse in pairs if better["phi"] - worse["phi"] >= gap]
        return selected


@dataclass(frozen=True)
class Pairs(Selection):
    """Pairs of a better and a worse image."""

    def schema(self, contest: Contest) -> "pa.Schema":
        import datasets

        text = datasets.Value("string")
        return RECORDS.schema({"chosen_id": text, "rejected_id": text})

    def records(self, rows: Sequence[Labelled], read: Read, contest: Contest) -> Iterator[dict[str, object]]:
        for better, worse in self.select(rows):
            ids = {"chosen_id": better["image_id"], "rejected_id": worse["image_id"]}
            yield RECORDS.record(row_of([better, worse], read)) | ids
