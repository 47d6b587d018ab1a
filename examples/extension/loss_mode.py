"""A loss mode of your own: the graph of one group at a time.

python -m diffpref.train --config configs/tiny-sdxl/dpo.yaml --loss_mode examples/extension/loss_mode.py:GroupByGroup

Between joint, which holds a whole batch, and deferred, which may cut a group: no buffer of gradients and no second
forward, as long as one group fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from diffpref.engine.modes import Cut, Work
from diffpref.engine.modes.base import graph_bytes
from diffpref.engine.rows import Block
from diffpref.engine.runner import References, Runner, detached, row_errors
from diffpref.engine.scalars import Outcome
from diffpref.types import Errors


@dataclass(frozen=True)
class GroupByGroup:
    """Forward, loss and backward of each group by itself."""

    cuts: ClassVar[bool] = True
    extra_forwards: ClassVar[int] = 0

    def sizes(self, work: Work) -> list[int]:
        """A group is the only size."""
        return [work.k]

    def repeats(self, work: Work) -> bool:
        """An image of several groups runs in each of them."""
        return True

    def scratches(self, k: int, micro_batch: int) -> int:
        """None: a group's loss is known at once."""
        return 0

    def need(self, work: Work, micro_batch: int, *, checkpointing: bool) -> int:
        """The graph of a group."""
        return graph_bytes(work, work.k, checkpointing=checkpointing)

    def describe(self, micro_batch: int) -> str:
        """What is in one graph, for people."""
        return "a group"

    def without_graph(self, cut: Cut) -> int:
        """Nothing of the policy's runs without a graph."""
        return cut.reference_batch

    def forwards(self, block: Block, cut: Cut) -> list[Sequence[int]]:
        """The rows of each group; those that an earlier group has are not run again."""
        found, known = [], set[int]()
        for group in (group for groups in block.places for group in groups):
            found.append(sorted(set(group) - known))
            known.update(group)
        return [rows for rows in found if rows]

    def gradient(
        self, runner: Runner, block: Block, references: References, cut: Cut, *, accumulation: int, last: bool
    ) -> Outcome:
        """Each group's loss and its backward.

        Raises:
            ValueError: an objective whose groups are not independent.
        """
        if not cut.separable:
            raise ValueError("GroupByGroup needs an objective whose groups are independent: set loss_mode: joint.")
        outcome = Outcome([], [], [])
        for part, groups in zip(block.parts, block.places, strict=True):
            errors, losses = [], []
            for scores, rows in zip(part.scores.split(1), groups, strict=True):
                once = sorted(set(rows))
                found = row_errors(runner, block, references, once)
                order = torch.tensor([once.index(row) for row in rows], device=scores.device)
                columns = (found.policy, found.reference, found.difference)
                group = Errors(*(column[order, 0][None] for column in columns))
                loss = runner.objective(group, scores)
                runner.backward(loss.sum() / (len(groups) * accumulation))
                errors.append(detached(group))
                losses.append(loss.detach())
            names = ("policy", "reference", "difference")
            outcome.errors.append(Errors(*(torch.cat([getattr(each, name) for each in errors]) for name in names)))
            outcome.losses.append(torch.cat(losses))
            outcome.skipped.append(torch.zeros(len(groups)))
        return outcome
