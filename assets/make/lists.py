"""Write assets/emoji-lists: each training caption's three drawings, scored by the reward `emoji_hand`.

    python assets/make/lists.py --packages DIR --output assets/emoji-lists

The captions and the drawings' bytes are those of assets/emoji-pairs/train.parquet; columns prompt, images, scores and
models, as `diffpref data` reads scored lists. Run assets/make/reward.py first.
"""

import argparse
from pathlib import Path

import datasets
import emoji
from pairs import png
from PIL import Image
from split import held_out

from diffpref.rewards import find_reward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    world = [one for one in emoji.load(args.packages) if one.common and not held_out(one.caption)]
    drawings = [Image.fromarray(picture) for one in world for picture in one.pictures]
    captions = [one.caption for one in world for _ in emoji.ARTISTS]
    # Four digits, so that the file does not hang on the order in which a machine adds.
    scores = [round(score, 4) for score in find_reward("emoji_hand")(drawings, captions).tolist()]
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "images": datasets.List(datasets.Image()),
            "scores": datasets.List(datasets.Value("float64")),
            "models": datasets.List(datasets.Value("string")),
        }
    )
    artists = len(emoji.ARTISTS)
    rows = [
        {
            "prompt": one.caption,
            "images": [png(picture) for picture in one.pictures],
            "scores": scores[i * artists : (i + 1) * artists],
            "models": list(emoji.ARTISTS),
        }
        for i, one in enumerate(world)
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(args.output / "train.parquet")
    print(f"train: {len(rows)} lists of {artists}")


if __name__ == "__main__":
    main()
