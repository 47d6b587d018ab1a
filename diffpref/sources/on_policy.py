"""On-policy chains (D3PO, Yang et al. 2024, algorithm 1): sample chains, label them, train, repeat."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

from accelerate import Accelerator
from annotated_types import Ge, Gt, Le
from torch import Tensor

from diffpref.backbones import Family
from diffpref.data.prompts import read_prompts
from diffpref.files.identity import content_key
from diffpref.probes import StepBatch
from diffpref.rewards import find_reward
from diffpref.run.done import finished, is_done
from diffpref.run.randomness import index_at
from diffpref.sources.chains import ChainGroups
from diffpref.sources.claim import claim
from diffpref.sources.collect import collect
from diffpref.sources.preference import PERSON, labelled
from diffpref.training.rounds import Basis, Encoded, Gives, Round, Say


@runtime_checkable
class LeadingGrid(Protocol):
    """A family whose levels are a table, on which DDIM has a grid of its own."""

    def leading_times(self, steps: int) -> Tensor:
        """The falling levels of a chain of so many steps."""
        ...


@dataclass(frozen=True)
class OnPolicy:
    """Learn from the steps of the policy's own sampling chains, in rounds.

    Each round samples from the policy of the last and trains on its labels, from its weights and with a new optimizer.
    With LoRA the reference stays the base model, as in the official reward loop; with all weights it is the policy at
    the start of the round, as in the official loop for people."""

    rounds: Annotated[int, Ge(1)] = 1
    """Sample, label, train, this many times."""
    labels: str = ""
    """Who labels: `person`, or a reward: emoji_hand, or module:function of (images, prompts)."""
    prompts_per_round: Annotated[int, Ge(1)] = 64
    """Prompts that are sampled in a round; each gives pairs of chains from one start."""
    chains_per_prompt: Annotated[int, Ge(2)] = 2
    """Chains of each prompt; all their pairs are labelled. The paper's people saw 7."""
    chain_steps: Annotated[int, Ge(1)] = 20
    """Noisy steps of a chain."""
    ddim_grid: bool = False
    """SD 1.5, SDXL: chains on the grid of D3PO's code, 951, 901, ..., 1, 0 for 20 steps. Without it they are even from
    the last level down, and the step from the lowest level to the picture is the denoiser's."""
    timestep_fraction: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of each chain's steps that an epoch trains on, drawn anew in every epoch; D3PO's code has 1."""

    @property
    def gives(self) -> Gives:
        """Steps of two chains each."""
        return Gives(batch=StepBatch, forms=("chain_pairs", "pairs"), together=self.chains_per_prompt)

    def check(self, basis: Basis) -> None:
        """Raise ValueError for settings that cannot work."""
        data = basis.data
        if not data.dataset_name:
            raise ValueError(
                "dataset_name is empty: give prompts, as a text file of one a line or any preference data."
            )
        if not self.labels:
            raise ValueError(
                "on-policy chains need labels: set labels: person for the local page, or labels: a reward (emoji_hand, "
                "or module:function of images and prompts)."
            )
        if self.labels != PERSON:
            find_reward(self.labels)
        if data.proportion_empty_prompts:
            raise ValueError(
                "the steps of chains were drawn under their prompt and have another density under the empty one: set "
                f"proportion_empty_prompts: 0, got {data.proportion_empty_prompts}."
            )
        if basis.run.resume_from_checkpoint not in (None, "latest"):
            raise ValueError("rounds go on from where they were: leave resume_from_checkpoint out.")
        if int(self.chain_steps * self.timestep_fraction) < 1:
            raise ValueError(
                f"timestep_fraction {self.timestep_fraction:g} of chain_steps {self.chain_steps} is no step: raise one."
            )
        self._check_chain(basis)

    def _check_chain(self, basis: Basis) -> None:
        """Raise ValueError for a grid or a sampler that this backbone has not."""
        times = self.times(basis.family)
        first = basis.probe.traits.rule(basis.family.step)(basis.family.path, times[:1], times[1:2])
        if not bool(first.keep.isfinite()):
            raise ValueError(
                f"chains cannot leave t = {float(times[0]):g}: it holds no picture, and epsilon says nothing of one. "
                "Set zero_terminal_snr: false, or ddim_grid: true, which starts below."
            )

    def times(self, family: Family) -> Tensor:
        """The falling levels of a chain; ValueError where the family has no DDIM grid."""
        if not self.ddim_grid:
            return family.chain_times(self.chain_steps)
        if not isinstance(family, LeadingGrid):
            raise ValueError(f"ddim_grid is for SD 1.5 and SDXL: {type(family).__name__} has no table of levels.")
        return family.leading_times(self.chain_steps)

    def each_round(self, basis: Basis, settings: Mapping[str, object]) -> Generator[Round, None, Path]:
        """Every round; a killed run goes on where it was when it is started again with the same settings."""
        data, run = basis.data, basis.run
        prompts = read_prompts(data.dataset_name, split=data.dataset_split, limit=data.max_train_samples)
        accelerator = Accelerator(mixed_precision=run.mixed_precision)
        fresh = run.overwrite_output_dir and run.resume_from_checkpoint is None
        out = claim(run.output_dir, settings, overwrite=fresh, main=accelerator.is_main_process)
        accelerator.wait_for_everyone()
        last: Path | None = None
        for number in range(1, self.rounds + 1):
            this = basis.round(number).after(last)
            last = this.run.output_dir
            if is_done(last):
                basis.say(f"round {number}: done before")
                continue
            basis.say(f"round {number} of {self.rounds}")
            first = (number - 1) * self.prompts_per_round
            places = [index_at(run.seed, first + place, len(prompts)) for place in range(self.prompts_per_round)]
            yield self._round(this, [prompts[place] for place in places], out / f"round-{number}")
            accelerator.wait_for_everyone()
        assert last is not None, "there is at least one round"
        return last

    def result(self, output: Path) -> Path:
        """The training of the last finished round, or of the round that is named."""
        return finished(output, [*(output / f"round-{n}" / "train" for n in range(self.rounds, 0, -1)), output])

    def _round(self, basis: Basis, prompts: list[str], folder: Path) -> Round:
        """Chains of these prompts, sampled and labelled, as what one training learns from."""
        collection = collect(basis, prompts, folder, chains=self.chains_per_prompt, times=self.times(basis.family))
        pairs = labelled(collection, folder, self.labels, basis.say)
        fraction = self.timestep_fraction
        fingerprint = content_key(*(repr(pair) for pair in pairs), *(() if fraction == 1 else (f"{fraction}",)))
        groups = ChainGroups(pairs, collection.times, collection.store, fingerprint, fraction)

        def encode(accelerator: Accelerator, say: Say) -> Encoded:
            return Encoded(groups=groups, **collection.fixed._asdict())

        steps, kept = len(collection.times) - 1, groups.kept_steps
        each = f"{steps} steps each" if kept == steps else f"{kept} of their {steps} steps in each epoch"
        summary = f"{len(pairs)} labelled pairs of chains of {len(prompts)} prompts, {each}"
        return Round(basis=basis, summary=summary, encode=encode)
