"""D3PO's loop (Yang et al. 2024, algorithm 1): sample chains, label them by a reward or a person, train, repeat."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator, PartialState
from PIL import Image

from diffpref.backbones import Family
from diffpref.data.prompts import read_prompts
from diffpref.files import atomic
from diffpref.files.identity import content_key
from diffpref.people import Pair, read_labels, serve, unanswered, write_pairs
from diffpref.people.pairs import PAIRS
from diffpref.rewards import find_reward
from diffpref.run.randomness import generator, index_at
from diffpref.sources.chains import ChainPair, EncodedChains
from diffpref.sources.collect import Collection, collect
from diffpref.sources.dataset import Encoded
from diffpref.sources.progress import claim, round_settings
from diffpref.training import prepare
from diffpref.training.config import TrainConfig
from diffpref.training.loop import train
from diffpref.training.models import open_base

PERSON = "person"


@dataclass(frozen=True)
class LabelledChains:
    """A round's pairs as the source of its training."""

    collection: Collection
    pairs: Sequence[ChainPair]

    def summary(self) -> str:
        """How many pairs there are, for people."""
        count, steps = len(self.pairs), len(self.collection.times) - 1
        return f"{count} labelled pairs of chains of {len(self.collection.prompts)} prompts, {steps} steps each"

    def encode(
        self, config: TrainConfig, family: Family, accelerator: Accelerator, say: Callable[[str], None]
    ) -> Encoded:
        """The pairs as they lie in the store."""
        c = self.collection
        fingerprint = content_key(*(repr(pair) for pair in self.pairs))
        return Encoded(EncodedChains(self.pairs, c.times, c.store, c.empty, fingerprint), c.validation, c.empty)


def learn_from_chains(config: TrainConfig, *, say: Callable[[str], None] = print) -> Path:
    """Every round of the settings; a killed run goes on where it was when it is started again with the same settings.

    Each round samples from the policy of the last and trains on its labels, from its weights and with a new optimizer.
    With LoRA the reference stays the base model, as in the official reward loop; with all weights it is the policy at
    the start of the round, as in the official loop for people.

    Returns:
        The output directory of the last round.

    Raises:
        ValueError: settings, prompts or labels that cannot work.
    """
    rounds = config.rounds
    _check(config)
    prepare.check_settings(config)
    family = open_base(config)
    prepare.check_family(config, family)
    prompts = read_prompts(
        config.data.dataset_name, split=config.data.dataset_split, limit=config.data.max_train_samples
    )
    accelerator = Accelerator(mixed_precision=config.run.mixed_precision)
    out = done = claim(config, main=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    for number in range(1, rounds.rounds + 1):
        folder = out / f"round-{number}"
        done = folder / "train"
        settings = _settings_of(config, number)
        if (done / "README.md").is_file():
            say(f"round {number}: done before")
            continue
        say(f"round {number} of {rounds.rounds}")
        count = len(prompts)
        first = (number - 1) * rounds.prompts_per_round
        places = [index_at(config.run.seed, first + place, count) for place in range(rounds.prompts_per_round)]
        collection = collect(settings, family, [prompts[place] for place in places], folder, say)
        pairs = label(collection, folder, rounds.labels, say)
        train(settings, source=LabelledChains(collection, pairs), say=say)
        accelerator.wait_for_everyone()
    return done


def _check(config: TrainConfig) -> None:
    """Raise ValueError for settings of the rounds that cannot work."""
    rounds = config.rounds
    if not config.data.dataset_name:
        raise ValueError("dataset_name is empty: give prompts, as a text file of one a line or any preference data.")
    if rounds.labels != PERSON:
        if not rounds.labels:
            raise ValueError(
                "D3PO needs labels for its chains: set labels: person for the local page, or labels: a reward "
                "(emoji_hand, or module:function of pictures and prompts)."
            )
        find_reward(rounds.labels)
    for name, least in (("rounds", 1), ("prompts_per_round", 1), ("chains_per_prompt", 2), ("chain_steps", 1)):
        if getattr(rounds, name) < least:
            raise ValueError(f"{name} must be {least} or above, got {getattr(rounds, name)}.")
    if config.data.proportion_empty_prompts:
        raise ValueError(
            "D3PO's steps were drawn under their prompt and have another density under the empty one: set "
            f"proportion_empty_prompts: 0, got {config.data.proportion_empty_prompts}."
        )
    if config.run.resume_from_checkpoint not in (None, "latest"):
        raise ValueError("rounds go on from where they were: leave resume_from_checkpoint out.")


def _settings_of(config: TrainConfig, number: int) -> TrainConfig:
    """The settings of one round: its own folder and seed, from the last round's weights."""
    last = config.run.output_dir / f"round-{number - 1}" / "train"
    config = round_settings(config, number)
    if number == 1:
        return config
    adapter, weights = config.adapter.continued(last, config.model.network_weights)
    return replace(config, adapter=adapter, model=replace(config.model, network_weights=weights))


def label(collection: Collection, folder: Path, by: str, say: Callable[[str], None]) -> list[ChainPair]:
    """Pairs of chains and which is better; pairs that nobody or nothing could tell apart are left out.

    Raises:
        ValueError: no pair is left.
    """
    scores = by_person(collection, folder) if by == PERSON else by_reward(collection, folder, by)
    pairs = []
    for place, keys in enumerate(collection.chains):
        for i, j in itertools.combinations(range(len(keys)), 2):
            better = scores.get((place, i, j), 0.0)
            if better:
                pairs.append(ChainPair((keys[i], keys[j]), collection.prompt_keys[place], (better, -better)))
    total = sum(len(keys) * (len(keys) - 1) // 2 for keys in collection.chains)
    if not pairs:
        raise ValueError(
            f"{folder}: none of the {total} pairs has a preference: every label is a tie or missing. Label them (start "
            "the same command again), or use a reward that tells these pictures apart."
        )
    say(f"labels: {len(pairs)} of {total} pairs have a better chain")
    return pairs


def by_reward(collection: Collection, folder: Path, name: str) -> Mapping[tuple[int, int, int], float]:
    """1 where the first chain's picture has the higher reward, -1 where the second's has; kept in rewards.json."""
    kept = folder / "rewards.json"
    if not kept.is_file():
        reward = find_reward(name)
        rewards = []
        for prompt, paths in zip(collection.prompts, collection.pictures, strict=True):
            pictures = [Image.open(path).convert("RGB") for path in paths]
            rewards.append(reward(pictures, [prompt] * len(pictures)).tolist())
        atomic.write_json(kept, {"reward": name, "prompts": list(collection.prompts), "rewards": rewards})
    rewards = json.loads(kept.read_text())["rewards"]
    return {
        (place, i, j): float((row[i] > row[j]) - (row[i] < row[j]))
        for place, row in enumerate(rewards)
        for i, j in itertools.combinations(range(len(row)), 2)
    }


def by_person(collection: Collection, folder: Path) -> Mapping[tuple[int, int, int], float]:
    """People's answers, averaged; opens the page while pairs are unanswered."""
    pictures = folder / "pictures"
    pairs = {
        f"{place}-{i}-{j}": (place, i, j)
        for place, keys in enumerate(collection.chains)
        for i, j in itertools.combinations(range(len(keys)), 2)
    }
    state = PartialState()
    if state.is_main_process and not (pictures / PAIRS).is_file():
        # Shuffled, so that a person who stops early has seen all prompts alike.
        order = sorted(pairs, key=lambda name: int(generator(0, "page", name).initial_seed()))
        asked = [
            Pair(name, collection.prompts[place], (f"{place:05d}/{i}.png", f"{place:05d}/{j}.png"))
            for name, (place, i, j) in ((name, pairs[name]) for name in order)
        ]
        write_pairs(pictures, asked)
    if state.is_main_process and unanswered(pictures):
        serve(pictures, port=0, annotator="", open_browser=True)
    state.wait_for_everyone()
    return {pairs[name]: score for name, score in read_labels(pictures).items()}
