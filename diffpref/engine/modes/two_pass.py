"""two-pass: all scalars first, without a graph; then micro-batches at their weights, where these are not 0."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge

from diffpref.engine.independence import random_state, replayed
from diffpref.engine.modes.base import Cut, Work, backward, candidates, cut_sizes, graph_bytes
from diffpref.engine.rows import Block, Component, chunks
from diffpref.engine.runner import References, Runner, row_errors
from diffpref.engine.scalars import Outcome, Scalars, no_losses, outcome_of, slopes_of

FIRST_BATCH = 8
"""Candidates of one forward of the losses: it holds no graph, and a GPU is not full with fewer."""


@dataclass(frozen=True)
class TwoPass:
    """The losses first, then forward and backward of the candidates whose coefficient is not 0; no scratch."""

    micro_batch: Annotated[int, Ge(0)] = 0
    """Pictures in one graph; 0 takes the most that fit."""

    cuts: ClassVar[bool] = True
    extra_forwards: ClassVar[int] = 1

    def sizes(self, work: Work) -> list[int]:
        """The micro-batch that is set, or whole groups first and then shares of one."""
        return cut_sizes(work, self.micro_batch)

    def repeats(self, work: Work) -> bool:
        """Never: equal candidates of a window run once."""
        return False

    def scratches(self, k: int, micro_batch: int) -> int:
        """None: every coefficient is known before the first backward."""
        return 0

    def need(self, work: Work, micro_batch: int, *, checkpointing: bool) -> int:
        """The graph of a micro-batch."""
        return graph_bytes(work, micro_batch, checkpointing=checkpointing)

    def describe(self, micro_batch: int) -> str:
        """What is in one graph."""
        return candidates(micro_batch)

    def without_graph(self, cut: Cut) -> int:
        """Candidates of one forward of the first pass."""
        return max(cut.reference_batch or FIRST_BATCH, cut.micro_batch)

    def forwards(self, block: Block, cut: Cut) -> list[Sequence[int]]:
        """As the first pass; a network that draws masks runs in micro-batches, which the second pass can repeat."""
        return chunks(range(len(block.rows)), cut.micro_batch if cut.masks else self.without_graph(cut))

    def gradient(
        self, runner: Runner, block: Block, references: References, cut: Cut, *, accumulation: int, last: bool
    ) -> Outcome:
        """The first pass over the whole block, then the second."""
        scalars, losses = Scalars(block), no_losses(block)
        everything = list(range(len(block.rows)))
        device = block.parts[0].scores.device
        states = []
        for rows in chunks(everything, cut.micro_batch if cut.masks else self.without_graph(cut)):
            states.append(random_state(device) if cut.masks else None)
            with torch.no_grad():
                scalars.put(rows, row_errors(runner, block, references, rows))
        parts = [
            Component(tuple((number, g) for g in range(len(p.scores))), ()) for number, p in enumerate(block.parts)
        ]
        slopes = slopes_of(runner.objective, block, parts, scalars, losses, 1 / accumulation)
        zero = torch.stack([slopes[row] for row in everything]) == 0
        # Where nothing is known of the values, as on meta tensors, every candidate counts.
        skip = [False] * len(everything) if zero.is_meta else zero.tolist()
        if all(skip):
            # Gradients of zero, not none: the optimizer must move as it does after a joint backward.
            skip = [row >= cut.micro_batch for row in everything]
        if cut.masks:
            runs = [(rows, state) for rows, state in zip(chunks(everything, cut.micro_batch), states, strict=True)]
            runs = [(rows, state) for rows, state in runs if not all(skip[row] for row in rows)]
        else:
            runs = [(rows, None) for rows in chunks([row for row in everything if not skip[row]], cut.micro_batch)]
        for rows, state in runs:
            with nullcontext() if state is None else replayed(state, device):
                errors = row_errors(runner, block, references, rows)
                backward(runner, errors, [slopes[row] for row in rows])
            del errors
        return outcome_of(block, scalars, losses, frozenset(row for rows, _ in runs for row in rows))
