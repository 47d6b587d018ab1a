"""A fixed data set: preferences read, checked and encoded once, in one round."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from accelerate import Accelerator
from annotated_types import Ge

from diffpref.backbones import Encoder, Sized
from diffpref.data.check import check_rows
from diffpref.data.columns import parse_columns
from diffpref.data.encode import encode_preferences
from diffpref.data.forms import form_of
from diffpref.data.framing import Framing
from diffpref.data.holdout import check_holdout, hold_out
from diffpref.data.poison import Poison, long_captions
from diffpref.data.preferences import read_preferences
from diffpref.data.rows import Preferences
from diffpref.data.scoring import score
from diffpref.data.tokens import of_model
from diffpref.files.store import TensorStore
from diffpref.probes import Batch
from diffpref.run.done import finished
from diffpref.run.memory import free_memory
from diffpref.sources.images import ImageGroups
from diffpref.training.groups import Data
from diffpref.training.prepare import check_output
from diffpref.training.rounds import Basis, Encoded, Gives, Round, Say, encode_fixed
from diffpref.types import Objective


@dataclass(frozen=True)
class Dataset:
    """Learn from preferences that are there."""

    columns: tuple[str, ...] = ()
    """Column names that differ from the schema's, as prompt=my_caption chosen=better."""
    size_mismatch: Literal["error", "crop"] = "error"
    """Images of different sizes in one row: stop, or resize and crop each to the resolution."""
    lists: Literal["all", "best_worst"] = "all"
    """Which pairs a ranked list gives, where the objective compares pairs."""
    given_scores: Literal["rewards", "scores"] = "rewards"
    """Rewards are scaled as the objective asks (SmPO, RankDPO); scores in [0, 1] are taken as they are."""
    posterior: Literal["kept", "fresh", "mean"] = "kept"
    """An image's latent: one draw of the autoencoder's posterior that is kept, a fresh draw each time as in the
    official codes (the cache holds mean and deviation, twice the size), or the posterior's mean."""
    mirror_alone: bool = False
    """With random_flip, mirror each image by a draw of its own, as the official Diffusion-DPO code does; without it all
    images of a group are mirrored together, as in diffusers' script."""
    real_sizes: bool = False
    """SDXL: tell the network the images' own sizes and crops, as in diffusers' script, and not the resolution uncropped
    as in the official Diffusion-DPO code. Validation images are drawn with the latter."""
    holdout_rows: Annotated[float, Ge(0)] = 0.1
    """Rows that are held out, to measure what training does beyond its own images: a share (at most 256 rows), or a
    number from 1. Whole prompts are held out, the same ones in every run; 0 trains on all rows."""

    @property
    def gives(self) -> Gives:
        """Groups of images: pairs or lists."""
        return Gives(batch=Batch, forms=("pairs", "lists"))

    def check(self, basis: Basis) -> None:
        """Raise ValueError where no data set is named, and for options that do not go together."""
        check_holdout(self.holdout_rows)
        if not basis.data.dataset_name:
            raise ValueError("dataset_name is empty: give a file, a folder or a data set on the hub.")
        if self.mirror_alone and not basis.data.random_flip:
            raise ValueError("mirror_alone says how images are mirrored, and none is: set random_flip: true.")
        if not self.real_sizes:
            return
        if not isinstance(basis.family, Sized):
            name = type(basis.family).__name__
            raise ValueError(f"real_sizes is for SDXL: {name} is not told its images' sizes. Leave real_sizes out.")
        if self.mirror_alone:
            raise ValueError(
                "real_sizes tells the network one crop for all images of a group, and mirror_alone gives them several: "
                "leave one of them out."
            )
        if self.size_mismatch != "error":
            raise ValueError(
                "real_sizes needs images of one size in each row, for the network is told one: set size_mismatch: "
                "error, and on_bad_row: skip to leave other rows out."
            )

    def each_round(self, basis: Basis, settings: Mapping[str, object]) -> Generator[Round, None, Path]:
        """One round, in the run's own folder."""
        # Before the data are read, which may take long.
        check_output(basis.run)
        rows = self.read(basis.data, basis.objective)
        base = basis.family.checkpoint
        tokens = of_model(base.source, revision=base.revision, longest=base.max_sequence_length)
        warnings = [] if tokens is None else [f"warning: {found.text}." for found in long_captions(rows, tokens)]
        rows, held = hold_out(rows, self.holdout_rows)

        def encode(accelerator: Accelerator, say: Say) -> Encoded:
            return self.encode(rows, held, basis, accelerator, say)

        yield Round(basis=basis, summary="\n".join([rows.summary(), *warnings]), encode=encode)
        return basis.run.output_dir

    def result(self, output: Path) -> Path:
        """The run's own folder."""
        return finished(output, [output])

    def read(self, data: Data, objective: Objective) -> Preferences:
        """The checked rows, in the form and with the scores that the objective needs; warnings are in their log."""
        rows = read_preferences(
            data.dataset_name,
            split=data.dataset_split,
            columns=parse_columns(self.columns),
            on_bad_row=data.on_bad_row,
            max_rows=data.max_train_samples,
        )
        rows = form_of(objective).arrange(rows, lists=self.lists)
        poison = Poison(resolution=data.resolution)
        rows = check_rows(rows, size_mismatch=self.size_mismatch, on_bad_row=data.on_bad_row, poison=poison)
        return score(rows, objective, given=self.given_scores)

    def encode(
        self, rows: Preferences, held: Preferences | None, basis: Basis, accelerator: Accelerator, say: Say
    ) -> Encoded:
        """Latents and prompts, from the cache or through the encoders, which are freed before this returns.

        Args:
            held: rows that are measured only.
        """
        data, run = basis.data, basis.run
        encoder = basis.family.load_encoder(accelerator.device)
        fixed = encode_fixed(basis, encoder)
        store = TensorStore(data.cache_dir or run.output_dir / "cache")
        framing = Framing(data.resolution, data.crop, data.random_flip, run.seed, self.posterior, self.real_sizes)

        def groups(some: Preferences, encoder: Encoder) -> ImageGroups:
            encoded = encode_preferences(
                some,
                encoder,
                store,
                framing,
                dtype=data.cache_dtype,
                share=(accelerator.process_index, accelerator.num_processes),
                report=report,
            )
            return ImageGroups(encoded, self.posterior == "fresh", self.mirror_alone)

        def report(done: int, total: int) -> None:
            if done == total or done % 200 < 8:
                say(f"encoded {done} of {total} images")

        training, held_out = groups(rows, encoder), None if held is None else groups(held, encoder)
        accelerator.wait_for_everyone()
        store.refresh()
        del encoder
        free_memory()
        return Encoded(groups=training, held_out=held_out, **fixed._asdict())
