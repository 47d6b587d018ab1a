"""One optimizer step's gradient from its window of batches, in the mode of the plan."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from accelerate import Accelerator
from torch import Tensor

from diffpref.engine.gradients import average_over_processes
from diffpref.engine.passes import (
    Outcome,
    References,
    Runner,
    deferred,
    deferred_forwards,
    detached,
    joint_loss,
    two_pass,
)
from diffpref.engine.plan import Plan
from diffpref.engine.reference import ReferencePass
from diffpref.engine.rows import Block, Part, chunks
from diffpref.probes import AnyBatch, Prober
from diffpref.types import Backbone, Cond, Errors


@dataclass(frozen=True)
class Compared:
    """A batch of the window after its step: what its metrics are made of."""

    errors: Errors
    scores: Tensor
    loss: Tensor
    t: Tensor
    skipped: Tensor
    """Share of each group's candidates that had no backward because their coefficient is 0."""


@dataclass(frozen=True)
class Engine:
    """Computes the gradients of a step; the optimizer, clipping and averages are the loop's."""

    accelerator: Accelerator
    prepared: torch.nn.Module
    policy: Backbone
    """Over the network as accelerate wraps it, for the joint mode."""
    runner: Runner
    reference: ReferencePass
    prober: Prober
    cond: Callable[[Cond], Cond]
    """From a batch's prompts to what the network is conditioned on."""
    plan: Plan
    block: int
    """Batches whose reference is evaluated before the policy's first backward."""
    reference_batch: int
    """Candidates of one forward of the reference; 0 for the shapes of the policy's own forwards, with which an
    untrained policy equals the reference to the last bit."""
    first_batch: int
    """two-pass: candidates of one forward without a graph."""
    separable: bool
    """Whether the objective's groups are independent of each other."""
    replay: bool
    """Whether the network draws dropout masks."""
    inverts: bool
    """Whether the probe runs the reference too."""

    def step(self, stream: Iterator[AnyBatch], accumulation: int) -> list[Compared]:
        """The next `accumulation` batches as compared; adds the gradient of their mean loss to the parameters'."""
        compared: list[Compared] = []
        while len(compared) < accumulation:
            left = accumulation - len(compared)
            batches = list(islice(stream, min(self.block, left)))
            keys = [self.reference.keys(batch) for batch in batches]
            batches = [batch.to(self.accelerator.device) for batch in batches]
            idle = not self.inverts and self.reference.knows(keys)
            with nullcontext() if idle else self.reference.loaded():
                block = Block([self._part(batch) for batch in batches])
                references = self.reference(block, self._forwards(block), keys)
            outcome = self._gradient(block, references, accumulation, last=left == len(batches))
            found = zip(batches, block.parts, outcome.errors, outcome.losses, outcome.skipped, strict=True)
            for batch, part, errors, loss, skipped in found:
                compared.append(Compared(errors, part.scores, loss, batch.t, skipped))
        if self.plan.mode != "joint" and self.accelerator.num_processes > 1:
            average_over_processes(self.runner.parameters)
        return compared

    def flush(self) -> None:
        """Write the inversions and the reference's errors that are kept in memory only."""
        self.prober.flush()
        if self.reference.stored is not None:
            self.reference.stored.store.flush()

    def _part(self, batch: AnyBatch) -> Part:
        # Its own context: weights that autocast has cast without a graph would get no gradient in the same one.
        with self.accelerator.autocast():
            probe = self.prober(batch, self.cond(batch.candidates.cond))
        return Part(probe, batch.candidates.scores, batch.shared)

    def _forwards(self, block: Block) -> list[Sequence[int]]:
        """The rows of each forward of the reference."""
        everything = range(len(block.rows))
        if self.reference_batch:
            return chunks(everything, self.reference_batch)
        if self.plan.mode == "joint":
            parts = [[row for row in everything if block.rows[row][0] == number] for number in range(len(block.parts))]
            return [rows for rows in parts if rows]
        if self.plan.mode == "deferred":
            return [*deferred_forwards(block, self.plan.micro_batch, separable=self.separable)]
        return chunks(everything, self.plan.micro_batch if self.replay else self.first_batch)

    def _gradient(self, block: Block, references: References, accumulation: int, *, last: bool) -> Outcome:
        plan, share = self.plan, 1 / accumulation
        if plan.mode == "joint":
            return self._joint(block, references, accumulation, last=last)
        if plan.mode == "deferred":
            return deferred(
                self.runner,
                block,
                references,
                micro_batch=plan.micro_batch,
                share=share,
                separable=self.separable,
            )
        return two_pass(
            self.runner,
            block,
            references,
            micro_batch=plan.micro_batch,
            first_batch=self.first_batch,
            share=share,
            replay=self.replay,
        )

    def _joint(self, block: Block, references: References, accumulation: int, *, last: bool) -> Outcome:
        accelerator = self.accelerator
        outcome = Outcome([], [], [])
        for number, part in enumerate(block.parts):
            final = last and number == len(block.parts) - 1
            with accelerator.autocast(), nullcontext() if final else accelerator.no_sync(self.prepared):
                errors, loss = joint_loss(self.policy, self.runner.objective, block, number, references)
                accelerator.backward(loss.mean() / accumulation)
            outcome.errors.append(detached(errors))
            outcome.losses.append(loss.detach())
            outcome.skipped.append(torch.zeros_like(part.scores[:, 0]))
        return outcome
