"""A contact sheet of a labelled data set: some prompts with all their pictures, best to worst."""

import heapq
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from diffpref.data.decode import decode
from diffpref.report.page import Page

PROMPTS = 24
MANY, LARGE, SMALL = 6, 224, 176
"""Rows of more than `MANY` pictures have `SMALL` ones, the longer side in pixels."""
LETTERS = 180
COLUMNS = ("image_id", "prompt_id", "prompt", "generator", "phi", "rank", "shard")


@dataclass
class Sample:
    """The labelled prompts with the lowest ids of all that were added: ids are hashes, so that the choice is as good as
    random, and the same for the same prompts."""

    rows: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    """prompt id -> its labelled pictures, best first."""

    def add(self, table: pa.Table) -> None:
        """A prompt's rows stand in one table; it has a column `shard` beside those of the labels."""
        labelled = table.filter(pc.call_function("is_valid", [table.column("phi")])).select(COLUMNS)
        here = heapq.nsmallest(PROMPTS, set(labelled.column("prompt_id").to_pylist()))
        kept = set(heapq.nsmallest(PROMPTS, {*self.rows, *here}))
        chosen = pa.array([name for name in here if name in kept], pa.string())
        mine = pc.call_function("is_in", [labelled.column("prompt_id")], pc.SetLookupOptions(chosen))
        for row in sorted(labelled.filter(mine).to_pylist(), key=lambda row: row["rank"]):
            self.rows.setdefault(row["prompt_id"], []).append(row)
        self.rows = {name: self.rows[name] for name in sorted(kept)}


def draw_sheet(page: Page, sample: Sample, images: Path) -> None:
    """Appends the sheet; a picture that cannot be read is counted and left out.

    Args:
        images: holds {generator}/{shard}.tar with members {image_id}.png.
    """
    lengths = [len(rows) for rows in sample.rows.values()]
    if not lengths:
        return
    side = SMALL if max(lengths) > MANY else LARGE
    pictures, captions, missing = [], [], 0
    for rows in sample.rows.values():
        found = [(_read(images, row, side), f"{row['phi']:.3g} {row['generator']}") for row in rows]
        missing += sum(picture is None for picture, _ in found)
        shown = [(picture, label) for picture, label in found if picture is not None]
        if shown:
            pictures.append(shown)
            captions.append(shorten(rows[0]["prompt"]))
    page.heading("Contact sheet")
    page.text(
        f"{len(pictures)} prompts, chosen by their ids, which are hashes. All labelled pictures from best to worst, "
        "each with its phi and generator."
    )
    if missing:
        page.callout(f"{missing} pictures could not be read from {images.name}/ and are missing here.", "note")
    page.pictures(pictures, captions)


def shorten(text: str) -> str:
    """At most `LETTERS` letters, the last one an ellipsis where some are missing."""
    return text if len(text) <= LETTERS else text[: LETTERS - 1].rstrip() + "…"


def _read(images: Path, row: Mapping[str, Any], side: int) -> Image.Image | None:
    try:
        with tarfile.open(images / row["generator"] / f"{row['shard']:05d}.tar", "r:") as tar:
            file = tar.extractfile(f"{row['image_id']}.png")
            assert file is not None, "a member is a regular file"
            picture = decode(file.read())
    except (OSError, KeyError, tarfile.TarError):
        return None
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture
