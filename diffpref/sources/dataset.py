"""Where a run's groups come from: preferences read, checked and encoded, or what a loop of rounds hands in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from accelerate import Accelerator

from diffpref.backbones import Encoder, Family
from diffpref.data.check import check_rows
from diffpref.data.columns import parse_columns
from diffpref.data.encode import EncodedPreferences, Framing, encode_preferences
from diffpref.data.forms import form_of
from diffpref.data.preferences import read_preferences
from diffpref.data.rows import Preferences
from diffpref.data.scoring import score
from diffpref.files.store import TensorStore
from diffpref.sources.chains import EncodedChains
from diffpref.training.config import TrainConfig
from diffpref.training.models import free_memory
from diffpref.types import Cond


def candidates_of(config: TrainConfig) -> str:
    """What the objective's groups hold: pairs, lists, chain_pairs or real_fake; an objective of the user's, pairs."""
    return getattr(config.objective, "candidates", "pairs")


def read_rows(config: TrainConfig) -> Preferences:
    """The checked rows of the data set, in the form and with the scores that the objective needs."""
    data = config.data
    rows = read_preferences(
        data.dataset_name,
        split=data.dataset_split,
        columns=parse_columns(data.columns),
        on_bad_row=data.on_bad_row,
        max_rows=data.max_train_samples,
    )
    rows = form_of(config.objective).arrange(rows, lists=data.lists)
    rows = check_rows(rows, size_mismatch=data.size_mismatch, on_bad_row=data.on_bad_row)
    return score(rows, config.objective, given=data.given_scores)


@dataclass(frozen=True)
class Encoded:
    """What is left of the encoders once they are out of memory."""

    data: EncodedPreferences | EncodedChains
    validation: Cond
    empty: Cond


@runtime_checkable
class Source(Protocol):
    """Where a run's groups come from: read and checked when it is made, encoded when training asks."""

    def summary(self) -> str:
        """What was read, for people."""
        ...

    def encode(
        self, config: TrainConfig, family: Family, accelerator: Accelerator, say: Callable[[str], None]
    ) -> Encoded:
        """The groups as tensors in a store."""
        ...


@dataclass(frozen=True)
class Rows:
    """Preferences that somebody gave: the source of every method that learns from a fixed data set."""

    rows: Preferences

    def summary(self) -> str:
        return self.rows.summary()

    def encode(
        self, config: TrainConfig, family: Family, accelerator: Accelerator, say: Callable[[str], None]
    ) -> Encoded:
        return encode(config, family, accelerator, self.rows, say)


def encode(
    config: TrainConfig, family: Family, accelerator: Accelerator, rows: Preferences, say: Callable[[str], None]
) -> Encoded:
    """Latents and prompts, from the cache or through the encoders, which are freed before this returns."""
    settings = config.data
    encoder: Encoder = family.load_encoder(accelerator.device)
    validation, empty = encode_fixed(config, family, encoder)
    store = TensorStore(settings.cache_dir or config.run.output_dir / "cache")
    framing = Framing(settings.resolution, settings.crop, settings.random_flip, config.run.seed)

    def report(done: int, total: int) -> None:
        if done == total or done % 200 < 8:
            say(f"encoded {done} of {total} pictures")

    data = encode_preferences(
        rows,
        encoder,
        store,
        framing,
        dtype=settings.cache_dtype,
        empty=empty,
        share=(accelerator.process_index, accelerator.num_processes),
        report=report,
    )
    accelerator.wait_for_everyone()
    store.refresh()
    del encoder
    free_memory()
    return Encoded(data, validation, empty)


def encode_fixed(config: TrainConfig, family: Family, encoder: Encoder) -> tuple[Cond, Cond]:
    """The validation prompts and the empty prompt."""
    empty = {name: value.cpu() for name, value in family.empty_prompt(encoder).items()}
    prompts = config.validation.validation_prompts
    validation = {name: value.cpu() for name, value in encoder.encode_prompts(prompts).items()} if prompts else {}
    return validation, empty
