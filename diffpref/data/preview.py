"""A page that shows what was read: pairs and lists with their images, the best one first."""

import random
from pathlib import Path

from PIL import Image

from diffpref.data.decode import decode
from diffpref.data.rows import Preferences
from diffpref.report.page import Page

THUMBNAIL = 224
"""The longer side of an image on the page, in pixels."""


def _thumbnail(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def write_preview(preferences: Preferences, path: Path, count: int = 50, seed: int = 0) -> None:
    """Writes a self-contained HTML page of at most `count` random rows, in the order of the source.

    Raises:
        ValueError: an image of these rows cannot be decoded; the message names its row.
    """
    if count < 1:
        raise ValueError(f"count must be 1 or above, got {count}.")
    chosen = sorted(random.Random(seed).sample(range(len(preferences)), min(count, len(preferences))))
    page = Page(f"Preferences in {preferences.source}")
    page.text(preferences.summary())
    page.heading(f"{len(chosen)} of {len(preferences)} rows, the best image first")
    rows: list[list[tuple[Image.Image, str]]] = []
    captions: list[str] = []
    for position in chosen:
        row = preferences[position]
        best_first = sorted(range(len(row.scores)), key=lambda i: -row.scores[i])
        cells: list[tuple[Image.Image, str]] = []
        for i in best_first:
            try:
                image = decode(row.images[i])
            except ValueError as problem:
                raise ValueError(f"{row.where}: image {i}: {problem}") from None
            model = f", {row.models[i]}" if row.models else ""
            cells.append((_thumbnail(image), f"{row.scores[i]:.4g}{model}, {image.width}x{image.height}"))
        rows.append(cells)
        captions.append(f"{row.prompt} ({row.where})")
    page.pictures(rows, captions)
    page.write(Path(path))
