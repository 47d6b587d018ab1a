"""The errors of a block's rows as they become known, and what the loss makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffpref.engine.head import coefficients
from diffpref.engine.rows import Block, Component, at
from diffpref.types import Errors, Loss


@dataclass(frozen=True)
class Outcome:
    """Errors "b k" and loss "b" of each part, and the share "b" of its groups' candidates that had no backward because
    their coefficient is 0, which the host knows: on the CPU."""

    errors: list[Errors]
    losses: list[Tensor]
    skipped: list[Tensor]


@dataclass
class Scalars:
    """The errors of all rows, filled in as they become known: policy, reference, difference."""

    block: Block
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def put(self, rows: Sequence[int], errors: Errors) -> None:
        """Keep the errors "n 1" of some rows, without their graph."""
        columns = (errors.policy[:, 0], errors.reference[:, 0], errors.difference[:, 0])
        for row, values in zip(rows, zip(*(column.detach().unbind() for column in columns), strict=True), strict=True):
            self.found[row] = values

    def errors(self, part: int, groups: Sequence[int]) -> Errors:
        """The errors of some groups of a part."""
        rows = [row for group in groups for row in self.block.places[part][group]]
        shape = (len(groups), -1)
        return Errors(*(torch.stack([self.found[row][column] for row in rows]).view(shape) for column in range(3)))


def slopes_of(
    objective: Loss,
    block: Block,
    components: Sequence[Component],
    scalars: Scalars,
    losses: list[list[Tensor | None]],
    share: float,
) -> dict[int, Tensor]:
    """dL / d err of every row of the components, summed over the groups that it is in; fills in the losses."""
    total: dict[int, Tensor] = {}
    for component in components:
        for number in dict.fromkeys(part for part, _ in component.groups):
            groups = [group for part, group in component.groups if part == number]
            scores = block.parts[number].scores
            loss, slopes = coefficients(objective, scalars.errors(number, groups), at(scores, groups))
            # The step's loss is the mean over a batch's groups, and over the batches.
            slopes = slopes * (share / len(scores))
            for group, own, of_rows in zip(groups, loss.unbind(), slopes.unbind(), strict=True):
                losses[number][group] = own
                for row, slope in zip(block.places[number][group], of_rows.unbind(), strict=True):
                    total[row] = total[row] + slope if row in total else slope
    return total


def no_losses(block: Block) -> list[list[Tensor | None]]:
    """Room for the loss of each group of each part."""
    return [[None] * len(part.scores) for part in block.parts]


def outcome_of(block: Block, scalars: Scalars, losses: list[list[Tensor | None]], run: frozenset[int]) -> Outcome:
    """What the step hands back.

    Args:
        run: the rows that had a backward.
    """
    outcome = Outcome([], [], [])
    for number, part in enumerate(block.parts):
        outcome.errors.append(scalars.errors(number, range(len(part.scores))))
        outcome.losses.append(torch.stack([loss for loss in losses[number] if loss is not None]))
        left_out = [[row not in run for row in rows] for rows in block.places[number]]
        outcome.skipped.append(torch.tensor(left_out).float().mean(1))
    return outcome
