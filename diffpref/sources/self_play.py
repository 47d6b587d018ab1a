"""DDO's self-play (Zheng et al. 2025, section 4 and appendix C): real pictures against the reference's own samples.

Each round freezes the reference, samples from it, trains real against fake, and takes the step that measured best as
the next round's reference. The optimizer starts anew each time; everything is float32, for the loss is a difference of
nearly equal numbers.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffpref.backbones import Encoder, Family
from diffpref.backbones.identity import weights_hash
from diffpref.backbones.prompts import collate
from diffpref.data.encode import EncodedPreferences, Framing, Group, encode_preferences, to_square
from diffpref.data.images import read_images
from diffpref.data.rows import Preferences
from diffpref.evaluate.measure import find_measure
from diffpref.files import atomic
from diffpref.files.identity import content_key
from diffpref.files.store import TensorStore
from diffpref.run.precision import DTYPES
from diffpref.run.randomness import generator
from diffpref.sources.dataset import Encoded, encode_fixed
from diffpref.sources.progress import claim, round_settings
from diffpref.training import prepare
from diffpref.training.config import TrainConfig
from diffpref.training.loop import train
from diffpref.training.models import free_memory, open_base

SAMPLE_BATCH = 64


def play(config: TrainConfig, *, say: Callable[[str], None] = print) -> Path:
    """Every round of the settings; a killed run goes on where it was when it is started again.

    `self_play.json` in the output directory has a line for each round: the measure at each step and the best one. A
    round that does not improve ends the game.

    Returns:
        The folder with the best weights.

    Raises:
        ValueError: settings or pictures that cannot work.
    """
    _check(config)
    prepare.check_settings(config)
    family = open_base(config)
    prepare.check_family(config, family)
    real = read_images(
        config.data.dataset_name,
        split=config.data.dataset_split,
        max_rows=config.data.max_train_samples,
        on_bad_row=config.data.on_bad_row,
    )
    measure = find_measure(config.rounds.measure, "cpu") if config.rounds.measure else None
    accelerator = Accelerator(mixed_precision="no")
    out = claim(config, main=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    say(real.summary())
    best: Path | None = None
    history = _read_history(out)
    for number in range(1, config.rounds.rounds + 1):
        settings = _settings_of(config, number, best)
        folder = out / f"round-{number}"
        if len(history) < number:
            say(f"round {number} of {config.rounds.rounds}")
            fakes = Fakes(real, number)
            watch = Watch(settings, family, real, measure, folder, say) if measure else None
            # Killed between a round's end and its line in the history: nothing is left to train.
            if not (folder / "train" / "README.md").is_file():
                train(settings, source=fakes, watch=watch, say=say)
            accelerator.wait_for_everyone()
            history.append(_round(folder, number))
            if accelerator.is_main_process:
                atomic.write_json(out / "self_play.json", {"rounds": history})
        last, best = best, out / str(history[number - 1]["best"])
        values = history[number - 1]["measures"]
        if values and min(values.values()) >= values["0"]:
            say(f"round {number} did not improve {config.rounds.measure}: the game ends here")
            return last or best
    return best or out


def _read_history(out: Path) -> list[dict[str, Any]]:
    path = out / "self_play.json"
    return json.loads(path.read_text())["rounds"] if path.is_file() else []


def _round(folder: Path, number: int) -> dict[str, Any]:
    # From the file: the watch runs in the main process alone, and all must go on from the same weights.
    kept = folder / "measures.json"
    measures: dict[str, float] = json.loads(kept.read_text()) if kept.is_file() else {}
    step = min(measures, key=measures.__getitem__) if measures else None
    best = f"{folder.name}/{'best' if measures else 'train'}"
    return {"round": number, "measures": measures, "best_step": None if step is None else int(step), "best": best}


def _check(config: TrainConfig) -> None:
    rounds = config.rounds
    if not config.data.dataset_name:
        raise ValueError("DDO needs real pictures: set dataset_name to a folder, a file or a data set on the hub.")
    if config.run.mixed_precision != "no":
        raise ValueError(
            f"DDO needs float32, its log-ratio is a difference of nearly equal numbers, got mixed_precision "
            f"{config.run.mixed_precision}: set mixed_precision: no."
        )
    if config.data.random_flip:
        raise ValueError("DDO's fakes are not mirrored, and a mirrored real picture would give itself away: "
                         "set random_flip: false.")  # fmt: skip
    if rounds.rounds < 1:
        raise ValueError(f"rounds must be 1 or above, got {rounds.rounds}.")
    if rounds.rounds > 1 and config.adapter.added:
        raise ValueError(
            "each round of self-play replaces the reference, which LoRA cannot: set adapter: full, or rounds: 1."
        )
    if rounds.samples_per_round < 0:
        raise ValueError(f"samples_per_round must be 0 or above, got {rounds.samples_per_round}.")
    if rounds.measure and rounds.measure_samples < 2:
        raise ValueError(f"measure_samples must be 2 or above, got {rounds.measure_samples}.")
    if config.run.resume_from_checkpoint not in (None, "latest"):
        raise ValueError("rounds go on from where they were: leave resume_from_checkpoint out.")


def _settings_of(config: TrainConfig, number: int, best: Path | None) -> TrainConfig:
    """The settings of one round: its own folder, seed and reference."""
    data = replace(config.data, cache_dir=config.data.cache_dir or config.run.output_dir / "cache")
    config = replace(round_settings(config, number), data=data)
    return config if best is None else replace(config, model=replace(config.model, network_weights=best))


@dataclass(frozen=True)
class Fakes:
    """Real pictures, each beside a sample of the reference for its prompt: the source of a round's training."""

    real: Preferences
    number: int

    def summary(self) -> str:
        """How many pictures there are, for people."""
        return f"self-play against {len(self.real)} real pictures"

    def encode(
        self, config: TrainConfig, family: Family, accelerator: Accelerator, say: Callable[[str], None]
    ) -> Encoded:
        """Unguided samples of the reference beside the real pictures; what the store has is not drawn again."""
        settings = config.data
        count = config.rounds.samples_per_round or len(self.real)
        order = torch.randperm(len(self.real), generator=generator(config.run.seed, "real", self.number)).tolist()
        chosen = [order[place % len(order)] for place in range(count)]
        encoder: Encoder = family.load_encoder(accelerator.device)
        validation, empty = encode_fixed(config, family, encoder)
        assert settings.cache_dir is not None
        store = TensorStore(settings.cache_dir)
        share = (accelerator.process_index, accelerator.num_processes)
        rows = self.real.subset(sorted(set(chosen)), dropped={}, step=f"round {self.number}")
        framing = Framing(settings.resolution, settings.crop, False, config.run.seed)
        encoded = encode_preferences(
            rows, encoder, store, framing, dtype=settings.cache_dtype, empty=empty, share=share
        )
        accelerator.wait_for_everyone()
        store.refresh()
        by_place = dict(zip(sorted(set(chosen)), encoded.groups, strict=True))
        wanted = [by_place[place] for place in chosen]
        groups = self._draw(config, family, accelerator, encoder, store, wanted, empty, say)
        del encoder
        free_memory()
        digest = content_key(*(repr(group) for group in groups))
        return Encoded(EncodedPreferences(groups, store, empty, digest), validation, empty)

    def _draw(
        self,
        config: TrainConfig,
        family: Family,
        accelerator: Accelerator,
        encoder: Encoder,
        store: TensorStore,
        real: Sequence[Group],
        empty: Any,
        say: Callable[[str], None],
    ) -> list[Group]:
        network = family.load_network(torch.float32).to(accelerator.device).eval()
        decoder = family.load_decoder(network, accelerator.device)
        steps, seed = config.validation.num_inference_steps, config.run.seed
        identity = (
            f"{weights_hash(network)} {steps} {seed} {self.number} {config.data.resolution} {config.data.cache_dtype}"
        )
        keys = [content_key("fake", identity, group.prompt, str(place)) for place, group in enumerate(real)]
        missing = [place for place, key in enumerate(keys) if key not in store]
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        for first in range(0, len(mine), SAMPLE_BATCH):
            part = mine[first : first + SAMPLE_BATCH]
            prompts = [store.get(real[place].prompt) for place in part]
            pictures = decoder.sample(
                collate(prompts),
                empty,
                resolution=config.data.resolution,
                seeds=[generator(seed, "fake", self.number, place).initial_seed() for place in part],
                steps=steps,
                guidance_scale=1.0,
                batch_size=SAMPLE_BATCH,
            )
            # Through the same pixels and the same encoder as the real ones: raw samples would give themselves away.
            squares = [to_square(picture.convert("RGB"), config.data.resolution, (0.5, 0.5)) for picture in pictures]
            draws = [generator(seed, "posterior", self.number, place) for place in part]
            latents = encoder.encode_pictures(torch.stack(squares), draws)
            for place, latent in zip(part, latents, strict=True):
                store.add(keys[place], {"latent": latent.to(DTYPES[config.data.cache_dtype])})
            done = first + len(part)
            if done == len(mine) or done // SAMPLE_BATCH % 16 == 0:
                store.flush()
                say(f"sampled {done} of {len(mine)} fakes")
        store.flush()
        accelerator.wait_for_everyone()
        store.refresh()
        pairs = zip(real, keys, strict=True)
        return [Group((g.pictures[0], fake), (), g.prompt, (1.0, 0.0)) for g, fake in pairs]


class Watch:
    """Measures the network on fixed samples at every call, and keeps the best weights in folder/best."""

    def __init__(
        self,
        config: TrainConfig,
        family: Family,
        real: Preferences,
        measure: Callable[..., float],
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.family, self.measure, self.folder, self.say = config, family, measure, folder, say
        count = config.rounds.measure_samples
        places = [place % len(real) for place in range(count)]
        order = torch.randperm(len(real), generator=generator(0, "measure")).tolist()
        self.prompts = [real[order[place]].prompt for place in places]
        kept = folder / "measures.json"
        self.measures: dict[str, float] = json.loads(kept.read_text()) if kept.is_file() else {}

    def __call__(self, step: int, network: torch.nn.Module) -> None:
        """Draw, measure, and keep the weights if no earlier step was better."""
        config, family = self.config, self.family
        if str(step) in self.measures:
            return
        device = next(network.parameters()).device
        encoder = family.load_encoder(device)
        unique = list(dict.fromkeys(self.prompts))
        encoded, empty = encoder.encode_prompts(unique), family.empty_prompt(encoder)
        del encoder
        rows = torch.tensor([unique.index(prompt) for prompt in self.prompts])
        decoder = family.load_decoder(network, device)
        pictures = decoder.sample(
            {name: value[rows.to(value.device)] for name, value in encoded.items()},
            empty,
            resolution=config.data.resolution,
            seeds=[generator(0, "measure", place).initial_seed() for place in range(len(rows))],
            steps=config.validation.num_inference_steps,
            guidance_scale=1.0,
            batch_size=SAMPLE_BATCH,
        )
        value = float(self.measure(pictures, self.prompts))
        better = value < min(self.measures.values(), default=math.inf)
        if better:
            (self.folder / "best").mkdir(parents=True, exist_ok=True)
            config.adapter.save(network, family, self.folder / "best")
        self.measures[str(step)] = value
        atomic.write_json(self.folder / "measures.json", self.measures)
        self.say(f"step {step}: {config.rounds.measure} {value:.4f}{' (best)' if better else ''}")
