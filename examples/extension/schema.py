"""A schema of your own: images with stars from 1 to 5, in the columns `text`, `images` and `stars`."""

from diffpref.data.bad_row import BadRow
from diffpref.data.schemas import Cells, Choice, Schema


def starred(row: Cells) -> Choice | str:
    """More stars are better; a row with fewer than two images is left out, and the reader counts why."""
    prompt, images, stars = row["text"], row["images"], row["stars"]
    if not isinstance(prompt, str) or not isinstance(images, list) or not isinstance(stars, list):
        raise BadRow("wrong type", f"text must be text, images and stars must be lists, got {row!r:.80}.")
    if len(images) < 2:
        return "single image"
    if len(stars) != len(images):
        raise BadRow("lengths differ", f"give stars to each of the {len(images)} images, got {len(stars)}.")
    return Choice(prompt, tuple(images), tuple(float(star) for star in stars))


STARRED = Schema("stars", ("text", "images", "stars"), (), starred)
