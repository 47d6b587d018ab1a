"""One optimizer step's gradient from its window of batches, in the mode of the plan."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from diffpref.engine.gradients import average_over_processes
from diffpref.engine.modes import Cut, Mode
from diffpref.engine.reference import ReferencePass
from diffpref.engine.rows import Block, Part, chunks
from diffpref.engine.runner import Runner
from diffpref.probes import AnyBatch, Prober
from diffpref.types import Errors


@dataclass(frozen=True)
class Compared:
    """A batch of the window after its step: what its metrics are made of."""

    errors: Errors
    scores: Tensor
    loss: Tensor
    t: Tensor
    skipped: Tensor
    """Share of each group's candidates that had no backward because their coefficient is 0."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Computes the gradients of a step; the optimizer, clipping and averages are the loop's."""

    mode: Mode
    cut: Cut
    runner: Runner
    reference: ReferencePass
    prober: Prober
    block: int
    """Batches whose reference is evaluated before the policy's first backward."""
    inverts: bool
    """Whether the probe runs the reference too."""
    device: torch.device
    processes: int

    def step(self, stream: Iterator[AnyBatch], accumulation: int) -> list[Compared]:
        """The next `accumulation` batches as compared; adds the gradient of their mean loss to the parameters'."""
        compared: list[Compared] = []
        while len(compared) < accumulation:
            left = accumulation - len(compared)
            batches = list(islice(stream, min(self.block, left)))
            keys = [self.reference.keys(batch) for batch in batches]
            batches = [batch.to(self.device) for batch in batches]
            idle = not self.inverts and self.reference.knows(keys)
            with nullcontext() if idle else self.reference.loaded():
                block = Block([self._part(batch) for batch in batches])
                references = self.reference(block, self._forwards(block), keys)
            last = left == len(batches)
            outcome = self.mode.gradient(self.runner, block, references, self.cut, accumulation=accumulation, last=last)
            found = zip(batches, block.parts, outcome.errors, outcome.losses, outcome.skipped, strict=True)
            for batch, part, errors, loss, skipped in found:
                compared.append(Compared(errors, part.scores, loss, batch.t, skipped))
        if self.mode.cuts and self.processes > 1:
            average_over_processes(self.runner.parameters)
        return compared

    def flush(self) -> None:
        """Write the inversions and the reference's errors that are kept in memory only."""
        self.prober.flush()
        if self.reference.stored is not None:
            self.reference.stored.store.flush()

    def _part(self, batch: AnyBatch) -> Part:
        # Its own context: weights that autocast has cast without a graph would get no gradient in the same one.
        with self.runner.autocast():
            probe = self.prober(batch, batch.candidates.cond)
        return Part(probe, batch.candidates.scores, batch.shared)

    def _forwards(self, block: Block) -> Sequence[Sequence[int]]:
        """The rows of each forward of the reference."""
        if self.cut.reference_batch:
            return chunks(range(len(block.rows)), self.cut.reference_batch)
        return self.mode.forwards(block, self.cut)
