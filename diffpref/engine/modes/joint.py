"""joint: a batch in one graph, with the best shapes and no extra work."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffpref.engine.modes.base import Cut, Work, graph_bytes
from diffpref.engine.rows import Block
from diffpref.engine.runner import References, Runner, detached, errors_at
from diffpref.engine.scalars import Outcome
from diffpref.transfer import moved
from diffpref.types import Backbone, Errors, Loss


@dataclass(frozen=True)
class Joint:
    """A batch in one graph."""

    cuts: ClassVar[bool] = False
    extra_forwards: ClassVar[int] = 0

    def sizes(self, work: Work) -> list[int]:
        """The candidates of a batch."""
        return [work.joint]

    def repeats(self, work: Work) -> bool:
        """Whether pairs of one set lie in several batches, each of which runs its candidates."""
        return work.batch > 0

    def scratches(self, k: int, micro_batch: int) -> int:
        """None."""
        return 0

    def need(self, work: Work, micro_batch: int, *, checkpointing: bool) -> int:
        """The graph of a batch."""
        return graph_bytes(work, work.joint, checkpointing=checkpointing)

    def describe(self, micro_batch: int) -> str:
        """What is in one graph."""
        return "a batch"

    def without_graph(self, cut: Cut) -> int:
        """Nothing of the policy's runs without a graph."""
        return cut.reference_batch

    def forwards(self, block: Block, cut: Cut) -> list[Sequence[int]]:
        """The rows of each batch; one that an earlier batch has is not run again."""
        everything = range(len(block.rows))
        parts = [[row for row in everything if block.rows[row][0] == number] for number in range(len(block.parts))]
        return [rows for rows in parts if rows]

    def gradient(
        self, runner: Runner, block: Block, references: References, cut: Cut, *, accumulation: int, last: bool
    ) -> Outcome:
        """Each batch's loss and its backward."""
        outcome = Outcome([], [], [])
        model = runner.model if runner.wrapped is None else runner.wrapped
        for number, part in enumerate(block.parts):
            final = last and number == len(block.parts) - 1
            with runner.autocast(), nullcontext() if final else runner.unsynchronized():
                errors, loss = joint_loss(model, runner.objective, block, number, references)
                mean = loss.mean()
                runner.backward(mean if accumulation == 1 else mean / accumulation)
            outcome.errors.append(detached(errors))
            outcome.losses.append(loss.detach())
            outcome.skipped.append(torch.zeros(len(part.scores)))
        return outcome


def joint_loss(
    model: Backbone, objective: Loss, block: Block, number: int, references: References
) -> tuple[Errors, Tensor]:
    """The errors and losses of a part of the block in one graph; a candidate of several of its groups runs once."""
    scores = block.parts[number].scores
    rows = [row for group in block.places[number] for row in group]
    once = sorted(set(rows))
    errors = errors_at(model, block, references, once)
    found = [errors.policy[:, 0], errors.reference[:, 0], errors.difference[:, 0]]
    if once != rows:
        at = {row: place for place, row in enumerate(once)}
        places = moved(torch.tensor([at[row] for row in rows]), scores.device)
        found = [each[places] for each in found]
    errors = Errors(*(each.view(scores.shape) for each in found))
    return errors, objective(errors, scores)
