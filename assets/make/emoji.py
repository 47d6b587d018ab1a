"""The emoji world: every chosen caption drawn by three artists, as one array of 64 x 64 pictures.

The pictures come from three npm packages, which `npm pack` downloads as archives:

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 openmoji@17.0.0

OpenMoji ships vector drawings only; `pip install resvg-py` rasterises them.
"""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

SIZE = 64
ARTISTS = ("google", "twitter", "openmoji")
ARCHIVES = {
    "google": "emoji-datasource-google-16.0.0.tgz",
    "twitter": "emoji-datasource-twitter-16.0.0.tgz",
    "openmoji": "openmoji-17.0.0.tgz",
}
# Things that a person recognises at 64 pixels. Left out: faces, people, flags, signs, clocks, moons.
SUBCATEGORIES = {
    "Animals & Nature": None,
    "Food & Drink": None,
    "Activities": ("sport", "award-medal", "arts & crafts"),
    "Travel & Places": (
        "transport-ground",
        "transport-air",
        "transport-water",
        "place-building",
        "place-geographic",
    ),
    "Objects": (
        "clothing",
        "musical-instrument",
        "tool",
        "household",
        "light & video",
        "science",
        "medical",
        "phone",
    ),
}
# OpenMoji leaves a wide margin around its drawings; this window of its 72-unit canvas matches the other two.
OPENMOJI_WINDOW = 'viewBox="4 4 64 64"'


@dataclass(frozen=True)
class Emoji:
    """One caption and its three drawings.

    `pictures` holds one RGB array (64, 64, 3) of uint8 for each artist, in the order of `ARTISTS`."""

    code: str
    caption: str
    common: bool
    pictures: np.ndarray


def _on_white(data: bytes) -> np.ndarray:
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(canvas, picture).convert("RGB"))


def _rasterise(svg: str) -> bytes:
    svg = svg.replace('viewBox="0 0 72 72"', OPENMOJI_WINDOW, 1)
    # Four times the size, then reduced: the outline keeps an even grey edge.
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=4 * SIZE, height=4 * SIZE))


def sentences(packages: Path) -> list[str]:
    """Captions and synonyms of every emoji, the text that the vocabulary is learned from."""
    with tarfile.open(packages / ARCHIVES["openmoji"]) as tar:
        rows = json.load(tar.extractfile("package/data/openmoji.json"))
    return [f"{row['annotation']}, {row['tags']}, {row['openmoji_tags']}".lower() for row in rows]


def load(packages: Path) -> list[Emoji]:
    """Every emoji that all three artists drew, in Unicode's order; `common` marks the chosen captions."""
    files: dict[str, dict[str, bytes]] = {}
    for artist, archive in ARCHIVES.items():
        with tarfile.open(packages / archive) as tar:
            wanted = (
                f"package/img/{artist}/64/",
                "package/emoji.json",
                "package/color/svg/",
                "package/data/openmoji.json",
            )
            members = [m for m in tar.getmembers() if m.name.startswith(wanted)]
            files[artist] = {m.name: tar.extractfile(m).read() for m in members if m.isfile()}
    table = json.loads(files["google"]["package/emoji.json"])
    annotations = {
        row["hexcode"]: row["annotation"] for row in json.loads(files["openmoji"]["package/data/openmoji.json"])
    }
    found: list[Emoji] = []
    for row in sorted(table, key=lambda row: row["sort_order"]):
        # OpenMoji drops the emoji presentation selector from most of its names.
        codes = (row["unified"], row["unified"].replace("-FE0F", ""))
        code = next((c for c in codes if f"package/color/svg/{c}.svg" in files["openmoji"]), None)
        google = files["google"].get(f"package/img/google/64/{row['image']}")
        twitter = files["twitter"].get(f"package/img/twitter/64/{row['image']}")
        if code is None or google is None or twitter is None or row["category"] in ("Flags", "Component"):
            continue
        openmoji = _rasterise(files["openmoji"][f"package/color/svg/{code}.svg"].decode())
        chosen = row["category"] in SUBCATEGORIES
        if chosen and SUBCATEGORIES[row["category"]] is not None:
            chosen = row["subcategory"] in SUBCATEGORIES[row["category"]]
        pictures = np.stack([_on_white(google), _on_white(twitter), _on_white(openmoji)])
        found.append(Emoji(code, annotations[code].lower(), chosen, pictures))
    return found
