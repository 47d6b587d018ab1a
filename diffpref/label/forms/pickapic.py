"""Form `pickapic`: pairs in the columns of Pick-a-Pic, which other trainers read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffpref.data.convert import RECORD_FORMS
from diffpref.files.identity import hash_bit
from diffpref.label.forms import Contest, Labelled, Read, row_of
from diffpref.label.forms.pairs import Selection

if TYPE_CHECKING:
    import pyarrow as pa

RECORDS = RECORD_FORMS["pickapic"]


@dataclass(frozen=True)
class PickaPic(Selection):
    """Pairs in the columns of Pick-a-Pic."""

    def schema(self, contest: Contest) -> "pa.Schema":
        import datasets

        text = datasets.Value("string")
        ids = {"image_0_uid": text, "image_1_uid": text}
        return RECORDS.schema({**ids, "num_example_per_prompt": datasets.Value("int32")})

    def records(self, rows: Sequence[Labelled], read: Read, contest: Contest) -> Iterator[dict[str, object]]:
        pairs = self.select(rows)
        for pair in pairs:
            # Which stands first must not say which is better.
            shown = sorted(pair, key=lambda row: row["image_id"])
            if hash_bit(" ".join(row["image_id"] for row in shown)):
                shown.reverse()
            ids = {f"image_{place}_uid": row["image_id"] for place, row in enumerate(shown)}
            yield RECORDS.record(row_of(shown, read)) | ids | {"num_example_per_prompt": len(pairs)}
