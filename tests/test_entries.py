"""Entries of a list that hold a choice: its fields are keys next to the entry's own, and come back as written."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
from annotated_types import Ge

from diffpref.settings.axis import Axis
from diffpref.settings.entries import read_entry, write_entry


@dataclass(frozen=True)
class Circle:
    radius: Annotated[int, Ge(1)] = 1


@dataclass(frozen=True)
class Square:
    side: int = 2
    filled: bool = False


@dataclass(frozen=True)
class Drawing:
    name: str
    shape: Annotated[Any, Axis("shape", {"circle": Circle, "square": Square})] = field(default_factory=Circle)
    copies: int = 1


@pytest.mark.parametrize(
    ("values", "entry"),
    [
        ({"name": "a"}, Drawing("a")),
        ({"name": "a", "radius": 3, "copies": 2}, Drawing("a", Circle(3), 2)),
        ({"shape": "square", "filled": True, "name": "b"}, Drawing("b", Square(filled=True))),
    ],
)
def test_an_entry_comes_back_as_written(values: dict[str, Any], entry: Drawing) -> None:
    assert read_entry(Drawing, values, "here") == entry
    assert read_entry(Drawing, write_entry(entry), "here") == entry


def test_a_member_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Star:\n    points: int = 5\n"
    )
    values = {"name": "c", "shape": f"{tmp_path / 'mine.py'}:Star", "points": 6}
    entry = read_entry(Drawing, values, "here")
    assert entry.shape.points == 6 and write_entry(entry) == {**values, "copies": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "here: name is missing"),
        ({"name": "a", "radius": 0}, "here: radius must be 1 or above, got 0"),
        ({"name": "a", "side": 3}, "here: side belongs to shape: square, and this is shape: circle. Set shape: square"),
        ({"name": "a", "shape": "square", "sids": 3}, "here: unknown key 'sids'. Perhaps you meant 'side'"),
        ({"name": "a", "shape": "cube"}, "here: shape must be one of circle, square, or your own as .*, got 'cube'"),
    ],
)
def test_a_wrong_key_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_entry(Drawing, values, "here")
