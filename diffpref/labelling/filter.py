"""Stage `filter`: which pictures are black, flat, or much like another one of their prompt; needs no GPU.

Its verdicts go into the labels only: pictures are scored whatever they are, so that another threshold costs no scores.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from diffpref.files.identity import value_hash
from diffpref.labelling.images import Source, images_markers
from diffpref.labelling.plan import Plan
from diffpref.labelling.shards import inputs_of, write_table
from diffpref.labelling.stages import Made, Report, Work, count, shard_of

SCHEMA = pa.schema(
    [("image_id", pa.string()), ("status", pa.string()), ("duplicate_of", pa.string()), ("bits", pa.int32())]
)


def difference_hash(image: Image.Image, side: int = 16) -> np.ndarray:
    """side x side bits: is each grey cell darker than its right neighbour? Alike for pictures that look alike."""
    grey = np.asarray(image.convert("L").resize((side + 1, side), Image.Resampling.BOX), dtype=np.int16)
    return (grey[:, 1:] > grey[:, :-1]).ravel()


@dataclass(frozen=True)
class Filter:
    """The verdict on every picture of a shard."""

    plan: Plan
    keep: bool = False

    @property
    def name(self) -> str:
        return "filter"

    def pictures(self, shard: int) -> int:
        return self.plan.count(shard)

    @property
    def settings(self) -> str:
        labels = self.plan.config.labels
        return value_hash([labels.duplicate_pictures, labels.duplicate_bits, labels.black_level, labels.flat_std])

    def inputs(self, shard: int) -> str:
        return inputs_of(images_markers(self.plan, shard))

    def open(self, device: torch.device) -> Work:
        return self._shard

    def _shard(self, number: int, report: Report) -> Made:
        sources = [Source(self.plan, number, generator.name) for generator in self.plan.config.generators]
        rows = []
        for prompt_id, _ in self.plan.rows(number):
            seen: list[tuple[str, np.ndarray]] = []
            for source in sources:
                for image_id, status in source.of(prompt_id):
                    row = {"image_id": image_id, "status": status, "duplicate_of": "", "bits": None}
                    if status == "ok":
                        row |= self._verdict(source.reader.picture(image_id), image_id, seen)
                    rows.append(row)
            report(self.plan.config.candidates)
        for source in sources:
            source.reader.close()
        write_table(shard_of(self, number).path(".parquet"), pa.Table.from_pylist(rows, schema=SCHEMA))
        return Made((".parquet",), count(rows))

    def _verdict(self, image: Image.Image, image_id: str, seen: list[tuple[str, np.ndarray]]) -> dict[str, object]:
        labels = self.plan.config.labels
        if max(high for _, high in image.getextrema()) <= labels.black_level:  # type: ignore[misc]
            return {"status": "black_image"}
        if np.asarray(image.convert("L"), dtype=np.float64).std() < labels.flat_std:
            return {"status": "flat_image"}
        mine = difference_hash(image)
        near = [(int((mine != theirs).sum()), other) for other, theirs in seen]
        seen.append((image_id, mine))
        bits, other = min(near, default=(257, ""))
        if bits > labels.duplicate_bits:
            return {"bits": bits if near else None}
        status = "near_duplicate" if labels.duplicate_pictures == "drop" else "ok"
        return {"status": status, "duplicate_of": other, "bits": bits}
