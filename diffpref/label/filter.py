"""Stage `filter`: which images are black, flat, or much like another one of their prompt; needs no GPU.

Its verdicts go into the labels only: images are scored whatever they are, so that another threshold costs no scores.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import torch
from annotated_types import Ge, Le
from PIL import Image

from diffpref.files.identity import value_hash
from diffpref.label.images import Source, images_markers
from diffpref.label.plan import Plan
from diffpref.label.shards import inputs_of, write_table
from diffpref.label.stages import Made, Report, Work, count, shard_of

SCHEMA = pa.schema(
    [("image_id", pa.string()), ("status", pa.string()), ("duplicate_of", pa.string()), ("bits", pa.int32())]
)


def difference_hash(image: Image.Image, side: int = 16) -> np.ndarray:
    """side x side bits: is each grey cell darker than its right neighbour? Alike for images that look alike."""
    grey = np.asarray(image.convert("L").resize((side + 1, side), Image.Resampling.BOX), dtype=np.int16)
    return (grey[:, 1:] > grey[:, :-1]).ravel()


@dataclass(frozen=True)
class ImageChecks:
    """What is wrong with an image by itself or next to the others of its prompt."""

    duplicate_pictures: Literal["flag", "drop"] = "flag"
    """What happens to an image that looks like an earlier one of its prompt."""
    duplicate_bits: Annotated[int, Ge(0), Le(256)] = 6
    """Two images are near-duplicates where their 256-bit difference hashes differ in at most this many bits."""
    black_level: int = 8
    """An image without a brighter pixel is black, as safety checkers return it; 0 to 255."""
    flat_std: float = 1.5
    """An image whose grey levels deviate less is flat; 0 to 255."""


@dataclass(frozen=True)
class Filter:
    """The verdict on every image of a shard."""

    plan: Plan
    checks: ImageChecks
    keep: bool = False

    @property
    def name(self) -> str:
        return "filter"

    def images(self, shard: int) -> int:
        return self.plan.count(shard)

    @property
    def settings(self) -> str:
        checks = self.checks
        return value_hash([checks.duplicate_pictures, checks.duplicate_bits, checks.black_level, checks.flat_std])

    def inputs(self, shard: int) -> str:
        return inputs_of(images_markers(self.plan, shard))

    def open(self, device: torch.device) -> Work:
        return self._shard

    def _shard(self, number: int, report: Report) -> Made:
        sources = [Source(self.plan.root, number, generator.name) for generator in self.plan.generators]
        rows = []
        for prompt_id, _ in self.plan.rows(number):
            seen: list[tuple[str, np.ndarray]] = []
            for source in sources:
                for image_id, status in source.of(prompt_id):
                    row = {"image_id": image_id, "status": status, "duplicate_of": "", "bits": None}
                    if status == "ok":
                        row |= self._verdict(source.reader.image(image_id), image_id, seen)
                    rows.append(row)
            report(self.plan.candidates)
        for source in sources:
            source.reader.close()
        write_table(shard_of(self, number).path(".parquet"), pa.Table.from_pylist(rows, schema=SCHEMA))
        return Made((".parquet",), count(rows))

    def _verdict(self, image: Image.Image, image_id: str, seen: list[tuple[str, np.ndarray]]) -> dict[str, object]:
        if max(high for _, high in image.getextrema()) <= self.checks.black_level:  # type: ignore[misc]
            return {"status": "black_image"}
        if np.asarray(image.convert("L"), dtype=np.float64).std() < self.checks.flat_std:
            return {"status": "flat_image"}
        bits_of_image = difference_hash(image)
        near = [(int((bits_of_image != bits_of_other).sum()), other) for other, bits_of_other in seen]
        seen.append((image_id, bits_of_image))
        bits, other = min(near, default=(257, ""))
        if bits > self.checks.duplicate_bits:
            return {"bits": bits if near else None}
        status = "near_duplicate" if self.checks.duplicate_pictures == "drop" else "ok"
        return {"status": status, "duplicate_of": other, "bits": bits}
