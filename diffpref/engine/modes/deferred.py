"""deferred: micro-batches, each forward and backward once, scaled when its weight in the loss is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from diffpref.engine.gradients import Scratch, add_scaled, collected
from diffpref.engine.modes.base import Cut, Work, backward, candidates, cut_sizes, graph_bytes
from diffpref.engine.rows import Block, Component
from diffpref.engine.runner import References, Runner, row_errors
from diffpref.engine.scalars import Outcome, Scalars, no_losses, outcome_of, slopes_of


@dataclass(frozen=True)
class Deferred:
    """Every row forward and backward once; what was run before its coefficient is known goes through a scratch.

    Groups that fit a micro-batch together are one graph and need no scratch. Of a larger group the last `micro_batch`
    candidates are one graph, whose forward makes all coefficients known; each candidate before them has a scratch, so
    that a pair in micro-batches of one needs one scratch, whatever the objective."""

    micro_batch: Annotated[int, Ge(0)] = 0
    """Pictures in one graph; 0 takes the most that fit."""

    cuts: ClassVar[bool] = True
    extra_forwards: ClassVar[int] = 0

    def sizes(self, work: Work) -> list[int]:
        """The micro-batch that is set, or whole groups first and then shares of one."""
        return cut_sizes(work, self.micro_batch)

    def repeats(self, work: Work) -> bool:
        """Never: equal candidates of a window run once."""
        return False

    def scratches(self, k: int, micro_batch: int) -> int:
        """One for each candidate of a group before its last micro-batch."""
        return max(k - micro_batch, 0)

    def need(self, work: Work, micro_batch: int, *, checkpointing: bool) -> int:
        """The graph of a micro-batch and the scratches of a group."""
        graphs = graph_bytes(work, micro_batch, checkpointing=checkpointing)
        return graphs + self.scratches(work.k, micro_batch) * work.gradient

    def describe(self, micro_batch: int) -> str:
        """What is in one graph."""
        return candidates(micro_batch)

    def without_graph(self, cut: Cut) -> int:
        """Nothing of the policy's runs without a graph."""
        return cut.reference_batch

    def forwards(self, block: Block, cut: Cut) -> list[Sequence[int]]:
        """The policy's own forwards, in order."""
        order = _order(block, cut.micro_batch, cut.separable)
        return [rows for _, early, last in order for rows in (*([row] for row in early), last)]

    def gradient(
        self, runner: Runner, block: Block, references: References, cut: Cut, *, accumulation: int, last: bool
    ) -> Outcome:
        """Set after set of groups that belong together."""
        scalars, losses = Scalars(block), no_losses(block)
        for bundle, early, final in _order(block, cut.micro_batch, cut.separable):
            scratches: list[Scratch] = []
            for row in early:
                errors = row_errors(runner, block, references, [row])
                scalars.put([row], errors)
                with collected(runner.parameters) as scratch:
                    runner.backward(errors.policy.sum() * runner.unit)
                scratches.append(scratch)
                del errors
            errors = row_errors(runner, block, references, final)
            scalars.put(final, errors)
            slopes = slopes_of(runner.objective, block, bundle, scalars, losses, 1 / accumulation)
            for row, scratch in zip(early, scratches, strict=True):
                add_scaled(runner.parameters, scratch, slopes[row] / runner.unit)
            backward(runner, errors, [slopes[row] for row in final])
            del errors
        return outcome_of(block, scalars, losses, frozenset(range(len(block.rows))))


def _order(block: Block, micro_batch: int, separable: bool) -> list[tuple[list[Component], list[int], list[int]]]:
    """Components that are run together: the rows that run alone, each with a scratch, and those of the last graph."""
    found = []
    for bundle in _bundles(block.components(separable=separable), micro_batch):
        rows = sorted({row for component in bundle for row in component.rows})
        found.append((bundle, rows[:-micro_batch], rows[-micro_batch:]))
    return found


def _bundles(components: Sequence[Component], size: int) -> list[list[Component]]:
    """Components that fit one micro-batch together; a larger one is alone."""
    bundles: list[list[Component]] = []
    room = 0
    for component in components:
        count = len(component.rows)
        if count > room:
            bundles.append([])
            room = size
        bundles[-1].append(component)
        room -= count
    return bundles
