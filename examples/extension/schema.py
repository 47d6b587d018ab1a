"""A schema of your own: pictures with stars from 1 to 5, in the columns `text`, `pictures` and `stars`."""

from diffpref.data.bad_row import BadRow
from diffpref.data.schemas import Cells, Choice, Schema


def starred(row: Cells) -> Choice | str:
    """More stars are better; a row with fewer than two pictures is left out, and the reader counts why."""
    prompt, pictures, stars = row["text"], row["pictures"], row["stars"]
    if not isinstance(prompt, str) or not isinstance(pictures, list) or not isinstance(stars, list):
        raise BadRow("wrong type", f"text must be text, pictures and stars must be lists, got {row!r:.80}.")
    if len(pictures) < 2:
        return "single image"
    if len(stars) != len(pictures):
        raise BadRow("lengths differ", f"give stars to each of the {len(pictures)} pictures, got {len(stars)}.")
    return Choice(prompt, tuple(pictures), tuple(float(star) for star in stars))


STARRED = Schema("stars", ("text", "pictures", "stars"), (), starred)
