"""Which captions are held out: no preference pair and no judge is trained on them, every evaluation is on them."""

import hashlib


def held_out(caption: str) -> bool:
    """True for about half of all captions, by the first bit of the caption's sha256, whatever else is in the list."""
    return hashlib.sha256(caption.encode("utf-8")).digest()[0] >= 128
