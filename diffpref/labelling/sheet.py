"""A contact sheet of a labelled data set: some prompts with all their pictures, best to worst."""

import tarfile
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from diffpref.data.decode import decode
from diffpref.labelling.database import Database
from diffpref.report.page import Page

PROMPTS = 24
MANY, LARGE, SMALL = 6, 224, 176
"""Rows of more than `MANY` pictures have `SMALL` ones, the longer side in pixels."""
LETTERS = 180
SHEET = """
SELECT image_id, prompt_id, prompt, generator, phi, shard FROM labels JOIN prompts USING (prompt_id)
WHERE labelled AND kept AND prompt_id IN
    (SELECT DISTINCT prompt_id FROM labels WHERE labelled ORDER BY prompt_id LIMIT ?)
ORDER BY prompt_id, rank
"""
# Ids are hashes, so that the lowest are as good as a random choice, and the same for the same prompts.


def draw_sheet(page: Page, database: Database, images: Path) -> None:
    """Appends the sheet; a picture that cannot be read is counted and left out.

    Args:
        images: holds {generator}/{shard}.tar with members {image_id}.png.
    """
    groups = [list(rows) for _, rows in groupby(database.table(SHEET, PROMPTS), key=lambda row: row["prompt_id"])]
    if not groups:
        return
    side = SMALL if max(map(len, groups)) > MANY else LARGE
    pictures, captions, missing = [], [], 0
    for rows in groups:
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
