"""Write assets/emoji-pairs: OpenMoji's drawing preferred over Google's or Twitter's of the same caption.

    python assets/make/pairs.py --packages DIR --output assets/emoji-pairs

train.parquet and heldout.parquet hold disjoint captions (assets/make/split.py); columns prompt, chosen, rejected,
chosen_model, rejected_model, as `diffpref data` reads them.
"""

import argparse
import hashlib
import io
from pathlib import Path

import datasets
import emoji
from PIL import Image
from split import held_out

PREFERRED = "openmoji"


def png(picture) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return {"bytes": buffer.getvalue(), "path": None}


def rows(world: list[emoji.Emoji]) -> list[dict[str, object]]:
    """One pair a caption; which of the other two artists it is against follows from the caption's hash."""
    others = [artist for artist in emoji.ARTISTS if artist != PREFERRED]
    found = []
    for one in world:
        drawn = {artist: png(picture) for artist, picture in zip(emoji.ARTISTS, one.pictures, strict=True)}
        other = others[hashlib.sha256(one.caption.encode()).digest()[1] % len(others)]
        found.append(
            {
                "prompt": one.caption,
                "chosen": drawn[PREFERRED],
                "rejected": drawn[other],
                "chosen_model": PREFERRED,
                "rejected_model": other,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    world = [one for one in emoji.load(args.packages) if one.common]
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "chosen": datasets.Image(),
            "rejected": datasets.Image(),
            "chosen_model": datasets.Value("string"),
            "rejected_model": datasets.Value("string"),
        }
    )
    args.output.mkdir(parents=True, exist_ok=True)
    for name, wanted in (("train", False), ("heldout", True)):
        part = [one for one in world if held_out(one.caption) == wanted]
        datasets.Dataset.from_list(rows(part), features=features).to_parquet(args.output / f"{name}.parquet")
        print(f"{name}: {len(part)} pairs")


if __name__ == "__main__":
    main()
