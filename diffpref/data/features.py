"""Features of single images, by a name: the image tower of a CLIP reward, the embedded judge, or a user's function.

Axes: n images, d features.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffpref.data.decode import decode
from diffpref.data.pairs import as_pairs
from diffpref.data.rows import Preferences
from diffpref.rewards import reward_settings
from diffpref.settings.dotted import is_address, load_callable
from diffpref.settings.typed import read_yaml

Features: TypeAlias = Callable[[Sequence[Image.Image]], Tensor]
"""Images -> "n d" in float32 on the CPU."""
JUDGE = "judge"
BATCH = 32


def find_features(name: str, device: str) -> Features:
    """The features of that name.

    Args:
        name: `judge`, the name or the YAML file of a reward with a CLIP in it, or a function of a list of images.

    Raises:
        ValueError: no such name, or a reward without an image tower.
    """
    if name == JUDGE:
        return _judge()
    if is_address(name):
        return _Own(load_callable("features", name))
    values = dict(read_yaml(Path(name))) if Path(name).suffix in (".yaml", ".yml") else {}
    scorer = reward_settings(str(values.pop("reward", name)), values, f"features {name!r}").load(torch.device(device))
    tower = getattr(scorer, "encode_images", None) or getattr(getattr(scorer, "clip", None), "encode_images", None)
    if tower is None:
        raise ValueError(
            f"features {name!r} has no image tower: name pickscore, clipscore, hpsv2, aesthetic or {JUDGE}, or your "
            "own function of a list of images."
        )
    return lambda images: tower(images).float().cpu()


class _Own:
    """A user's function, whose answer is made a tensor."""

    def __init__(self, function: Callable[[list[Image.Image]], object]) -> None:
        self.function = function

    def __call__(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        found = torch.as_tensor(np.asarray(self.function(list(images)))).float()
        if found.ndim != 2 or len(found) != len(images):
            raise ValueError(f"features must be one row of numbers for each image, got {tuple(found.shape)}.")
        return found


def _judge() -> Features:
    from diffpref.demo.judge import Judge, to_batch
    from diffpref.files.embedded import embedded

    judge = Judge.load(embedded("assets/judge"))
    return lambda images: judge.features(to_batch(images))


def of_pairs(
    rows: Preferences, features: Features, report: Callable[[int], None]
) -> tuple[Tensor, Tensor, list[str], list[tuple[str, str]] | None]:
    """Features of chosen and rejected "n d", the prompts, and the generators of both where all rows name them.

    Args:
        report: called with the number of pairs that were read.

    Raises:
        ValueError: an image that cannot be decoded; names the row.
    """
    pairs = as_pairs(rows, lists="best_worst")
    parts, prompts, models = [], [], []
    for start in range(0, len(pairs), BATCH):
        images = []
        for position in range(start, min(start + BATCH, len(pairs))):
            row = pairs[position]
            best = int(row.scores[1] > row.scores[0])
            try:
                images += [decode(row.images[best]), decode(row.images[1 - best])]
            except ValueError as problem:
                raise ValueError(f"{row.where}: {problem}") from None
            prompts.append(row.prompt)
            models += [(row.models[best], row.models[1 - best])] if row.models else []
        parts.append(features(images).unflatten(0, (-1, 2)))
        report(len(images) // 2)
    both = torch.cat(parts)
    return both[:, 0], both[:, 1], prompts, models if len(models) == len(prompts) else None
