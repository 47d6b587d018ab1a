"""What a mode is: one order in which the exact gradient of a window of batches is summed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffpref.engine.rows import Block
from diffpref.engine.runner import References, Runner
from diffpref.engine.scalars import Outcome
from diffpref.types import Errors

TRANSIENT = 1.15
"""A backward's own temporaries, as a factor on what the graph holds."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a step has to hold: bytes, and the size of a batch."""

    candidate: int
    """Bytes of one candidate's graph without checkpointing."""
    checkpointed: int | None
    """The same with checkpointing; None where the network has none."""
    gradient: int
    """Bytes of one gradient of all trained parameters, in float32."""
    groups: int
    k: int
    cheap_scratch: bool
    """Whether a gradient is small beside the network, as an adapter's is."""
    cut: bool = True
    """Whether a batch may be cut: no module mixes its samples, and every process holds the whole network."""
    batch: int = 0
    """Candidates of one batch, where a group's are spread over several: joint then runs them once in each."""

    @property
    def joint(self) -> int:
        """Candidates of the graph of a whole batch."""
        return self.batch or self.groups * self.k


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a block may be cut."""

    micro_batch: int
    """Candidates of one graph."""
    reference_batch: int = 0
    """Candidates of one forward without a graph; 0 leaves that to the mode."""
    separable: bool = True
    """Whether the objective's groups are independent of each other."""
    masks: bool = False
    """Whether the network draws dropout masks, which a second forward must draw again."""


@runtime_checkable
class Mode(Protocol):
    """One order of the sum. Yours is a frozen dataclass with these members: `loss_mode: my_file.py:MyMode`."""

    cuts: ClassVar[bool]
    """Whether candidates of a batch run apart. Then no module may mix a batch's samples, every process holds the whole
    network, and the gradients are averaged over the processes after the window."""
    extra_forwards: ClassVar[int]
    """How often a candidate's forward runs beside the one that its backward needs."""

    def sizes(self, work: Work) -> Sequence[int]:
        """The micro-batches worth trying, from the fastest."""
        ...

    def repeats(self, work: Work) -> bool:
        """Whether a candidate runs in each batch that holds it, where others run it once."""
        ...

    def scratches(self, k: int, micro_batch: int) -> int:
        """Gradients of all trained parameters that are held beside the optimizer's, for groups of k candidates."""
        ...

    def need(self, work: Work, micro_batch: int, *, checkpointing: bool) -> int:
        """Bytes of graphs and scratches, at most at once."""
        ...

    def describe(self, micro_batch: int) -> str:
        """What is in one graph, for people."""
        ...

    def without_graph(self, cut: Cut) -> int:
        """Candidates of one forward without a graph; 0 where only the reference has such forwards, of any size."""
        ...

    def forwards(self, block: Block, cut: Cut) -> Sequence[Sequence[int]]:
        """The rows of each forward of the reference, every row once: shapes of the policy's own forwards, with which
        an untrained policy equals the reference to the last bit."""
        ...

    def gradient(
        self, runner: Runner, block: Block, references: References, cut: Cut, *, accumulation: int, last: bool
    ) -> Outcome:
        """Adds the gradient of the block's share of the window's loss to the parameters'.

        Args:
            accumulation: batches of the window, whose mean loss is the step's.
            last: no block of this window comes after this one.
        """
        ...


def graph_bytes(work: Work, size: int, *, checkpointing: bool) -> int:
    """Bytes of the graph of some candidates, with a backward's own temporaries."""
    one = work.candidate if not checkpointing or work.checkpointed is None else work.checkpointed
    return int(TRANSIENT * one) * min(size, work.groups * work.k)


def cut_sizes(work: Work, micro_batch: int) -> list[int]:
    """The micro-batch that is set, else the sizes that make a difference: whole groups first, then shares of one."""
    if micro_batch:
        return [micro_batch]
    whole = [groups * work.k for groups in range(work.groups, 0, -1)]
    return whole + list(range(work.k - 1, 0, -1))


def candidates(count: int) -> str:
    """A number of candidates, for people."""
    return "1 candidate" if count == 1 else f"{count} candidates"


def backward(runner: Runner, errors: Errors, slopes: Sequence[Tensor]) -> None:
    """The backward of some rows' errors "n 1" at their coefficients."""
    runner.backward((errors.policy[:, 0] * torch.stack(list(slopes))).sum())
