"""What trains a model to something else than the user means, though every row can be read: counted in one pass.

Nothing here stops a run. Each kind is one warning of one line, with its count, its first places and a remedy."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from diffpref.data.look import Look, alike, same_file
from diffpref.data.rows import Preferences, Row
from diffpref.data.sides import Sides
from diffpref.data.tokens import TokenCount
from diffpref.files.identity import content_key

SMALL = 256
"""Shorter side in pixels below which an image is small for every published model, where no resolution is given."""
LOST = 0.5
"""Share of an image that the square crop may cut off; 16:9 loses 0.44."""
PLACES = 3
_TEXTS = {
    "same image": "of {rows} rows compare an image with itself, which teaches nothing; remove them",
    "alike": "of {rows} rows compare two images that look the same, as copies in another format or quality do; look at "
    "them with diffpref data preview",
    "contradiction": "of {rows} rows say the opposite of an earlier row of the same prompt and images; keep one",
    "repeated row": "of {rows} rows repeat an earlier row, which then counts twice; remove them",
    "one colour": "of {images} images have one colour throughout, like a safety checker's black image; remove them",
    "small": "of {images} images have a shorter side below {smallest} pixels and are enlarged; give larger ones, or "
    "name the model's size with --resolution",
    "cropped": "of {images} images lose half or more to the square crop; crop them yourself to what matters",
    "long caption": "of {rows} captions are longer than the {limit} tokens that are read, and the rest is cut ({how}); "
    "shorten them",
}
"""What is said of each kind, between its count and its first places."""


@dataclass(frozen=True)
class Finding:
    """One kind of poison that was found."""

    kind: str
    count: int
    text: str
    """One line for people."""


@dataclass
class _Seen:
    """How often one thing was met, and the first places."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.count += 1
        if len(self.places) < PLACES:
            self.places.append(place)

    def __str__(self) -> str:
        return ", ".join(self.places) + (" and more" if self.count > len(self.places) else "")


def long_captions(rows: Preferences, tokens: TokenCount) -> list[Finding]:
    """The finding of captions that are cut, if any are; reads no image of the others."""
    seen = _Seen()
    for position in range(len(rows)):
        if (length := tokens.count(rows.prompt(position))) > tokens.limit:
            seen.add(f"{rows[position].where}: {length} tokens" if seen.count < PLACES else "")
    words = {"rows": len(rows), "limit": tokens.limit, "how": tokens.how}
    return [_finding("long caption", seen, words)] if seen.count else []


def _finding(kind: str, seen: _Seen, words: Mapping[str, object]) -> Finding:
    return Finding(kind, seen.count, f"{seen.count} {_TEXTS[kind].format(**words)}: {seen}")


def place_of(row: Row, number: int) -> str:
    """The row and the image's file in it, for people."""
    source = row.images[number]
    name = f" ({source.parent.name}/{source.name})" if isinstance(source, Path) else ""
    return f"{row.where} image {number}{name}"


class Poison:
    """Takes rows one after another; `findings` says what they held.

    Args:
        resolution: the side of the training images in pixels, if it is known.
        tokens: how captions are counted; None leaves them uncounted.
    """

    def __init__(self, *, resolution: int | None = None, tokens: TokenCount | None = None) -> None:
        self.smallest, self.tokens, self.sides = resolution or SMALL, tokens, Sides()
        self.rows = self.images = 0
        self.same, self.small, self.cut, self.plain, self.long = (_Seen() for _ in range(5))
        self.again, self.against, self.alike = _Seen(), _Seen(), _Seen()
        self.uses: Counter[bytes] = Counter()
        self.places: dict[bytes, str] = {}
        self.choices: dict[str, bytes] = {}

    def add(self, row: Row, looks: Sequence[Look]) -> None:
        """Count one good row."""
        self.rows += 1
        self.images += len(looks)
        if _same_image(row, looks):
            self.same.add(row.where)
        elif _alike(looks):
            self.alike.add(row.where)
        for number, look in enumerate(looks):
            self._image(row, number, look)
        if self.tokens is not None and (length := self.tokens.count(row.prompt)) > self.tokens.limit:
            self.long.add(f"{row.where}: {length} tokens")
        if len(looks) > 1:
            self.sides.add(row.scores, looks)
            self._repeated(row, looks)

    def _image(self, row: Row, number: int, look: Look) -> None:
        shorter, longer = min(look.size), max(look.size)
        if shorter < self.smallest:
            self.small.add(f"{place_of(row, number)}: {look.size[0]}x{look.size[1]}")
        if 1 - shorter / longer >= LOST:
            self.cut.add(f"{place_of(row, number)}: {look.size[0]}x{look.size[1]} keeps {shorter / longer:.0%}")
        if look.pixels is not None:
            if look.pixels.plain:
                self.plain.add(place_of(row, number))
            self.uses[look.pixels.digest] += 1
            self.places.setdefault(look.pixels.digest, place_of(row, number))

    def _repeated(self, row: Row, looks: Sequence[Look]) -> None:
        """Whether an earlier row has the same prompt and images, and whether it says the same."""
        digests = [look.pixels.digest for look in looks if look.pixels is not None]
        if len(digests) < len(looks) or len(set(digests)) == 1:
            return
        best = digests[max(range(len(digests)), key=lambda place: row.scores[place])]
        key = content_key(row.prompt, *sorted(digests))
        if key not in self.choices:
            self.choices[key] = best
        else:
            (self.again if self.choices[key] == best else self.against).add(row.where)

    def findings(self) -> list[Finding]:
        """A finding for each kind that was met, and for each way in which the two sides differ."""
        words: dict[str, object] = {"rows": self.rows, "images": self.images, "smallest": self.smallest}
        if self.tokens is not None:
            words |= {"limit": self.tokens.limit, "how": self.tokens.how}
        seen = {
            "same image": self.same,
            "alike": self.alike,
            "contradiction": self.against,
            "repeated row": self.again,
            "one colour": self.plain,
            "small": self.small,
            "cropped": self.cut,
            "long caption": self.long,
        }
        found = [_finding(kind, one, words) for kind, one in seen.items() if one.count]
        if often := sum(count - 1 for count in self.uses.values()):
            digest, most = self.uses.most_common(1)[0]
            text = f"{often} of {self.images} images were there before ({self.places[digest]}: {most} times in all)"
            found.append(Finding("repeated image", often, f"{text}: such an image counts more than others"))
        return [*found, *(Finding(*side) for side in self.sides.findings())]


def _alike(looks: Sequence[Look]) -> bool:
    """Whether two decoded images of the row look the same."""
    pixels = [look.pixels for look in looks if look.pixels is not None]
    return any(alike(one, other) for one, other in combinations(pixels, 2))


def _same_image(row: Row, looks: Sequence[Look]) -> bool:
    """Whether two images of the row are one: by their pixels where they were decoded, else by their files."""
    digests = [look.pixels.digest for look in looks if look.pixels is not None]
    if len(digests) == len(looks):
        return len(set(digests)) < len(digests)
    return any(same_file(one, other) for one, other in combinations(row.images, 2))
