"""Who prefers which chain: a reward of the images where they end, or a person on the local page."""

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from accelerate import PartialState
from PIL import Image

from diffpref.files import atomic
from diffpref.people import Pair, read_labels, serve, unanswered, write_pairs
from diffpref.people.pairs import PAIRS
from diffpref.rewards import find_reward
from diffpref.run.randomness import generator
from diffpref.sources.chains import ChainPair
from diffpref.sources.collect import Collection

PERSON = "person"
Preferred = Mapping[tuple[int, int, int], float]
"""(prompt's place, chain, other chain) -> above 0 where the first is better, below 0 where the other is."""


def labelled(collection: Collection, folder: Path, by: str, say: Callable[[str], None]) -> list[ChainPair]:
    """Pairs of chains and which is better; pairs that nobody or nothing could tell apart are left out.

    Args:
        by: "person", or a reward's name.

    Raises:
        ValueError: no pair is left.
    """
    preferred = by_person(collection, folder) if by == PERSON else by_reward(collection, folder, by)
    pairs = []
    for place, keys in enumerate(collection.chains):
        for i, j in itertools.combinations(range(len(keys)), 2):
            better = preferred.get((place, i, j), 0.0)
            if better:
                pairs.append(ChainPair((keys[i], keys[j]), collection.prompt_keys[place], (better, -better)))
    total = sum(len(keys) * (len(keys) - 1) // 2 for keys in collection.chains)
    if not pairs:
        raise ValueError(
            f"{folder}: none of the {total} pairs has a preference: every label is a tie or missing. Label them (start "
            "the same command again), or use a reward that tells these images apart."
        )
    say(f"labels: {len(pairs)} of {total} pairs have a better chain")
    return pairs


def by_reward(collection: Collection, folder: Path, name: str) -> Preferred:
    """1 where the first chain's image has the higher reward, -1 where the second's has; kept in rewards.json."""
    kept = folder / "rewards.json"
    if not kept.is_file():
        reward = find_reward(name)
        rewards = []
        for prompt, paths in zip(collection.prompts, collection.images, strict=True):
            images = [Image.open(path).convert("RGB") for path in paths]
            rewards.append(reward(images, [prompt] * len(images)).tolist())
        atomic.write_json(kept, {"reward": name, "prompts": list(collection.prompts), "rewards": rewards})
    rewards = json.loads(kept.read_text())["rewards"]
    return {
        (place, i, j): float((row[i] > row[j]) - (row[i] < row[j]))
        for place, row in enumerate(rewards)
        for i, j in itertools.combinations(range(len(row)), 2)
    }


def by_person(collection: Collection, folder: Path) -> Preferred:
    """People's answers, averaged; opens the page while pairs are unanswered."""
    images = folder / "pictures"
    pairs = {
        f"{place}-{i}-{j}": (place, i, j)
        for place, keys in enumerate(collection.chains)
        for i, j in itertools.combinations(range(len(keys)), 2)
    }
    state = PartialState()
    if state.is_main_process and not (images / PAIRS).is_file():
        # Shuffled, so that a person who stops early has seen all prompts alike.
        order = sorted(pairs, key=lambda name: int(generator(0, "page", name).initial_seed()))
        asked = [
            Pair(name, collection.prompts[place], (f"{place:05d}/{i}.png", f"{place:05d}/{j}.png"))
            for name, (place, i, j) in ((name, pairs[name]) for name in order)
        ]
        write_pairs(images, asked)
    if state.is_main_process and unanswered(images):
        serve(images, port=0, annotator="", open_browser=True)
    state.wait_for_everyone()
    return {pairs[name]: score for name, score in read_labels(images).items()}
