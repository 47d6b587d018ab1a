"""The order of the data and all randomness of a run, as functions of (seed, position).

Position p counts groups since the start of the run, over all processes. A group's t, noise, mirroring and caption
dropout depend on nothing else, so batch 1 x accumulation 8 trains on what batch 8 does, and a resumed run continues the
same curve without any saved generator.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffpref.backbones.prompts import collate, split
from diffpref.probes import AnyBatch
from diffpref.run.randomness import generator, positions_of
from diffpref.types import Cond


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How a group's randomness is drawn, and how its prompt becomes what the network is conditioned on."""

    seed: int
    draw_t: Callable[[torch.Generator], Tensor]
    """One training time, in the path's unit."""
    empty_prompt: Cond
    """The unconditional prompt, first axis 1."""
    complete: Callable[[Cond], Cond]
    """A batch's prompts with what else the network is told, such as sizes."""
    flip: bool = False
    empty: float = 0.0
    """Share of groups with the empty prompt, in [0, 1]."""
    shared_noise: bool = True
    repeats: int = 0
    """0 draws at every position of the run; n gives each group n draws that are used in turn."""

    def place(self, position: int, index: int, count: int) -> tuple[object, ...]:
        """What the draws of a position depend on, besides the seed; `index` is the group there."""
        return ("kept", index, position // count % self.repeats) if self.repeats else ("group", position)

    def draws(self, places: Sequence[tuple[object, ...]]) -> "Draws":
        """The randomness of the groups at these places."""
        generators = [generator(self.seed, *place) for place in places]
        coins = torch.stack([torch.rand(2, generator=draw) for draw in generators])
        mirrored = [self.flip and bool(coin < 0.5) for coin in coins[:, 0]]
        dropped = [bool(coin < self.empty) for coin in coins[:, 1]]
        names = tuple(repr((self.seed, *place)) for place in places)
        return Draws(self, generators, mirrored, dropped, names)


@dataclass(frozen=True)
class Draws:
    """What was drawn for the groups of a batch; times and noise follow, in this order."""

    drawing: Drawing
    generators: Sequence[torch.Generator]
    mirrored: Sequence[bool]
    dropped: Sequence[bool]
    names: tuple[str, ...]
    """Equal names are equal draws of one group."""

    def times(self) -> Tensor:
        """t "b" of each group."""
        return torch.stack([self.drawing.draw_t(draw) for draw in self.generators])

    def noise(self, x0: Tensor) -> Tensor:
        """Standard normal noise of the shape of x0 "b k *chw", one for all candidates where they share it."""
        shape = x0.shape[2:] if self.drawing.shared_noise else x0.shape[1:]
        eps = torch.stack([torch.randn(shape, generator=draw) for draw in self.generators])
        return eps[:, None].expand_as(x0) if self.drawing.shared_noise else eps

    def apart(self, kind: str) -> list[torch.Generator]:
        """A generator of each group for one more kind of randomness, which leaves the other draws as they are."""
        return [generator(self.drawing.seed, kind, name) for name in self.names]

    def condition(self, prompts: Sequence[Mapping[str, Tensor]], told: Cond | None = None) -> Cond:
        """What the network is conditioned on: the prompts, or the empty one where it was drawn, made complete.

        Args:
            told: what belongs to the images, first axis b, whatever their prompt is.
        """
        empty = split(self.drawing.empty_prompt)[0]
        chosen = [empty if drop else prompt for prompt, drop in zip(prompts, self.dropped, strict=True)]
        return self.drawing.complete({**collate(chosen), **(told or {})})


@runtime_checkable
class Groups(Protocol):
    """A source's data, encoded: groups of candidates that lie in a store."""

    @property
    def fingerprint(self) -> str:
        """Names the data: equal for equal groups."""
        ...

    def __len__(self) -> int: ...

    def order(self, seed: int, epoch: int) -> Sequence[int]:
        """The groups in the order of an epoch, each once."""
        ...

    def batch(self, indices: Sequence[int], draws: Draws) -> AnyBatch:
        """The groups at the indices, complete, in float32 on the CPU."""
        ...


class _Stream(Dataset):
    def __init__(self, groups: Groups, drawing: Drawing):
        self.groups, self.drawing = groups, drawing
        self._order: tuple[int, Sequence[int]] = (-1, [])

    def _index(self, position: int) -> int:
        """The group at a position."""
        epoch, place = divmod(position, len(self.groups))
        if self._order[0] != epoch:
            self._order = (epoch, self.groups.order(self.drawing.seed, epoch))
        return self._order[1][place]

    def __getitem__(self, positions: Sequence[int]) -> AnyBatch:
        indices = [self._index(position) for position in positions]
        count, how = len(self.groups), self.drawing
        places = [how.place(position, index, count) for position, index in zip(positions, indices, strict=True)]
        return self.groups.batch(indices, how.draws(places))


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of every step is this process's, and in how many batches it comes."""

    size: int
    """Groups of a batch."""
    accumulation: int = 1
    """Batches of a step, for each process."""
    rank: int = 0
    processes: int = 1

    @property
    def step(self) -> int:
        """Groups of a step over all processes."""
        return self.size * self.accumulation * self.processes


def batches(groups: Groups, drawing: Drawing, share: Share, *, first_step: int, steps: int) -> Iterator[AnyBatch]:
    """This process's batches of steps first_step to steps - 1, `accumulation` for each step, read on demand.

    The groups of a process in a step are neighbours, so that they may share what they have in common."""

    def positions() -> Iterator[list[int]]:
        cut, own = {"size": share.size, "accumulation": share.accumulation}, (share.rank, share.processes)
        for step in range(first_step, steps):
            for part in range(share.accumulation):
                yield list(positions_of(step, part, share=own, **cut))

    # batch_size None: each item of the sampler is a list of positions, and the data set returns the whole batch.
    return iter(
        DataLoader(_Stream(groups, drawing), batch_size=None, sampler=positions(), collate_fn=lambda batch: batch)
    )


@dataclass(frozen=True)
class Feed:
    """This process's batches of a round, from any step on."""

    groups: Groups
    drawing: Drawing
    share: Share

    def __call__(self, first: int, steps: int) -> Iterator[AnyBatch]:
        """The batches of steps `first` to `steps` - 1."""
        return batches(self.groups, self.drawing, self.share, first_step=first, steps=steps)
