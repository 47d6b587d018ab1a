"""Pairs of sampled chains as the groups of a run: each group is one step of both chains of a pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from diffpref.files.store import TensorStore
from diffpref.probes import StepBatch
from diffpref.run.randomness import generator
from diffpref.training.stream import Draws
from diffpref.types import Candidates


@dataclass(frozen=True)
class ChainPair:
    """Two chains of one prompt from one start: keys into the store, and which of them is better."""

    chains: tuple[str, str]
    prompt: str
    scores: tuple[float, float]


@dataclass(frozen=True)
class ChainGroups:
    """Chains "s *chw" that lie in a store under `latents`, all at the same falling times "s".

    Group g is step g % (s - 1) of pair g // (s - 1). The pairs of a prompt at one step share their chains: they are a
    bundle, which is read together, so that each chain's step runs once for all its pairs."""

    pairs: Sequence[ChainPair]
    times: Float[Tensor, " s"] | Integer[Tensor, " s"]
    store: TensorStore
    fingerprint: str
    """Names the data: equal for equal chains and labels."""
    fraction: float = 1.0
    """Share of a chain's steps that an epoch has, others in each epoch; all chains of a prompt have the same."""

    def __len__(self) -> int:
        return len(self.pairs) * self.kept_steps

    @property
    def kept_steps(self) -> int:
        """Steps of each chain in an epoch, rounded down as D3PO's code does."""
        return int((len(self.times) - 1) * self.fraction)

    @cached_property
    def bundles(self) -> list[list[int]]:
        """The groups that share chains: those of a prompt at one step."""
        by_prompt: dict[str, list[int]] = {}
        for place, pair in enumerate(self.pairs):
            by_prompt.setdefault(pair.prompt, []).append(place)
        steps = len(self.times) - 1
        return [[place * steps + step for place in places] for places in by_prompt.values() for step in range(steps)]

    def order(self, seed: int, epoch: int) -> Sequence[int]:
        """The groups in the order of an epoch: bundles in a permutation of its own, each as a whole."""
        bundles = self.bundles if self.fraction == 1 else self._some_steps(seed, epoch)
        order = torch.randperm(len(bundles), generator=generator(seed, "epoch", epoch)).tolist()
        return [group for bundle in order for group in bundles[bundle]]

    def _some_steps(self, seed: int, epoch: int) -> list[list[int]]:
        """The bundles of an epoch: for each prompt those of the first of its steps, which are shuffled."""
        steps, found = len(self.times) - 1, []
        for first in range(0, len(self.bundles), steps):
            shuffled = torch.randperm(steps, generator=generator(seed, "steps", epoch, first))
            found += [self.bundles[first + step] for step in shuffled[: self.kept_steps].tolist()]
        return found

    def names(self, indices: Sequence[int]) -> tuple[str, ...]:
        """A name for each candidate of the groups; equal names are one chain at one step."""
        places = [divmod(index, len(self.times) - 1) for index in indices]
        return tuple(f"{chain} {step}" for pair, step in places for chain in self.pairs[pair].chains)

    def batch(self, indices: Sequence[int], draws: Draws) -> StepBatch:
        """The steps of the groups: candidates whose x0 is the latent before the step, x_s after it "b 2 *chw"."""
        places = [divmod(index, len(self.times) - 1) for index in indices]
        before, after, scores, prompts = [], [], [], []
        for pair, step in places:
            chosen = self.pairs[pair]
            chains = torch.stack([self.store.get(key)["latents"] for key in chosen.chains]).float()
            before.append(chains[:, step])
            after.append(chains[:, step + 1])
            scores.append(torch.tensor(chosen.scores))
            prompts.append(self.store.get(chosen.prompt))
        at = torch.tensor([step for _, step in places])
        candidates = Candidates(torch.stack(before), torch.stack(scores).float(), draws.condition(prompts))
        return StepBatch(candidates, self.times[at], torch.stack(after), self.times[at + 1], self.names(indices))
