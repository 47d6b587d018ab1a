"""A page that shows what was read: pairs and lists with their pictures, the best one first."""

import random
from pathlib import Path

from PIL import Image

from diffpref.data.rows import Preferences, decode
from diffpref.report.page import Page

THUMBNAIL = 224
"""The longer side of a picture on the page, in pixels."""


def _thumbnail(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def write_preview(preferences: Preferences, path: Path, count: int = 50, seed: int = 0) -> None:
    """Writes a self-contained HTML page of at most `count` random rows, in the order of the source.

    Raises:
        ValueError: a picture of these rows cannot be decoded; the message names its row.
    """
    if count < 1:
        raise ValueError(f"count must be 1 or above, got {count}.")
    chosen = sorted(random.Random(seed).sample(range(len(preferences)), min(count, len(preferences))))
    page = Page(f"Preferences in {preferences.source}")
    page.text(preferences.summary())
    page.heading(f"{len(chosen)} of {len(preferences)} rows, the best picture first")
    rows: list[list[tuple[Image.Image, str]]] = []
    captions: list[str] = []
    for position in chosen:
        row = preferences[position]
        best_first = sorted(range(len(row.scores)), key=lambda i: -row.scores[i])
        cells: list[tuple[Image.Image, str]] = []
        for i in best_first:
            try:
                picture = decode(row.pictures[i])
            except ValueError as problem:
                raise ValueError(f"{row.where}: picture {i}: {problem}") from None
            model = f", {row.models[i]}" if row.models else ""
            cells.append((_thumbnail(picture), f"{row.scores[i]:.4g}{model}, {picture.width}x{picture.height}"))
        rows.append(cells)
        captions.append(f"{row.prompt} ({row.where})")
    page.pictures(rows, captions)
    page.write(Path(path))
