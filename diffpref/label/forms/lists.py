"""Form `lists`: all images of a prompt in one row, best first."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from diffpref.data.convert import RECORD_FORMS
from diffpref.label.forms import Contest, Labelled, Read, row_of

if TYPE_CHECKING:
    import pyarrow as pa

RECORDS = RECORD_FORMS["lists"]


@dataclass(frozen=True)
class Lists:
    """Ranked lists."""

    min_candidates: Annotated[int, Ge(0)] = 0
    """The least number of images of a prompt; 0 asks for all that were planned, so that lists have one length as
    RankDPO needs."""

    def __post_init__(self) -> None:
        if self.min_candidates == 1:
            raise ValueError("min_candidates must be 0 or at least 2, got 1: one image is no list.")

    def check(self, candidates: int) -> None:
        if self.min_candidates > candidates:
            raise ValueError(f"min_candidates is {self.min_candidates}, but a prompt has at most {candidates} images.")

    def schema(self, contest: Contest) -> "pa.Schema":
        import datasets

        text, scores = datasets.Value("string"), datasets.Sequence(datasets.Value("float64"))
        more = {f"score.{name}": scores for name in contest.rewards}
        return RECORDS.schema({"prompt_id": text, "image_ids": datasets.Sequence(text), **more})

    def records(self, rows: Sequence[Labelled], read: Read, contest: Contest) -> Iterator[dict[str, object]]:
        if len(rows) < (self.min_candidates or contest.candidates):
            return
        ids = {"prompt_id": rows[0]["prompt_id"], "image_ids": [row["image_id"] for row in rows]}
        scores = {f"score.{name}": [row[f"score.{name}"] for row in rows] for name in contest.rewards}
        yield RECORDS.record(row_of(rows, read)) | ids | scores
