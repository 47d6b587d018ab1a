"""What a run is built on, and the rounds of training that its source asks for."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from accelerate import Accelerator

from diffpref.backbones import Encoder, Family, with_weights
from diffpref.backbones.adapters import Adapter
from diffpref.probes import ProbeChoice
from diffpref.training.groups import Data, Run, Validation
from diffpref.training.stream import Groups
from diffpref.types import Cond, Objective

Say = Callable[[str], None]
Watch = Callable[[int, torch.nn.Module], None]
"""Called by the main process with the step and the network, its averaged weights in place, when images are drawn."""


@dataclass(frozen=True, kw_only=True)
class Basis:
    """The opened backbone and the values of a run that its source may use, and change from round to round."""

    family: Family
    data: Data
    objective: Objective
    probe: ProbeChoice
    adapter: Adapter
    run: Run
    validation: Validation
    say: Say

    @property
    def prompt(self) -> str:
        """An example for people; may be empty."""
        return next(iter(self.validation.validation_prompts), "")

    def after(self, output: Path | None) -> "Basis":
        """The basis of a round that goes on from another round's output folder; None for the base model."""
        if output is None:
            return self
        checkpoint = self.family.checkpoint
        adapter, weights = self.adapter.continued(output, checkpoint.network_weights)
        return replace(self, adapter=adapter, family=with_weights(self.family, weights))

    def round(self, number: int) -> "Basis":
        """The basis of one round's training: its own folder and seed, going on where it was stopped."""
        folder = self.run.output_dir / f"round-{number}" / "train"
        run = replace(
            self.run,
            output_dir=folder,
            seed=self.run.seed + number - 1,
            resume_from_checkpoint="latest" if (folder / "config.yaml").is_file() else None,
            overwrite_output_dir=False,
        )
        return replace(self, run=run)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What is left of the encoders once they are out of memory."""

    groups: Groups
    validation: Cond
    """The validation prompts."""
    negative: Cond
    """What guidance of their images leads away from, first axis 1."""
    empty: Cond
    """The unconditional prompt of the training, first axis 1: of dropped captions, and of guidance in the loss."""
    held_out: Groups | None = None
    """Images that the run is measured on, and never learns from."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One training that a source asks for."""

    basis: Basis
    summary: str
    """What is learned from, for people."""
    encode: Callable[[Accelerator, Say], Encoded]
    watch: Watch | None = None


@dataclass(frozen=True, kw_only=True)
class Gives:
    """What a source hands to probes and objectives."""

    batch: type
    """`Batch` of images, or `StepBatch` of a stored chain's steps."""
    forms: tuple[str, ...]
    """The `candidates` of the objectives that can learn from it."""
    together: int = 0
    """Candidates that are compared pair by pair at one step, so that they run once for all their pairs; 0: none."""


@runtime_checkable
class Source(Protocol):
    """A member of the source axis: where groups come from."""

    @property
    def gives(self) -> Gives:
        """What it hands to probes and objectives."""
        ...

    def check(self, basis: Basis) -> None:
        """Raise ValueError for settings that cannot work, before anything is read."""
        ...

    def each_round(self, basis: Basis, settings: Mapping[str, object]) -> Generator[Round, None, Path]:
        """The rounds, each trained when the next is asked for; returns the folder of the result.

        Args:
            settings: the run's flat keys, for a folder that holds several rounds.
        """
        ...

    def result(self, output: Path) -> Path:
        """The folder of a finished run's trained weights, from its output directory.

        Raises:
            ValueError: nothing there has finished.
        """
        ...


class Fixed(NamedTuple):
    """The prompts of a run that no group has; see `Encoded`."""

    validation: Cond
    negative: Cond
    empty: Cond


def encode_fixed(basis: Basis, encoder: Encoder) -> Fixed:
    """The validation prompts, and what stands for no prompt in their images and in the training."""
    prompts, negative = basis.validation.validation_prompts, basis.validation.negative_prompt

    def encoded(texts: Sequence[str]) -> Cond:
        return {name: value.cpu() for name, value in encoder.encode_prompts(texts).items()} if texts else {}

    own = {name: value.cpu() for name, value in basis.family.empty_prompt(encoder).items()}
    return Fixed(
        validation=encoded(prompts),
        negative=own if negative is None else encoded([negative]),
        empty=encoded([""]) if basis.data.encode_empty_prompt else own,
    )
