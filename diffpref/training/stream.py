"""The order of the data and all randomness of a run, as functions of (seed, position).

Position p counts groups since the start of the run, over all processes. A group's t, noise, mirroring and caption
dropout depend on nothing else, so batch 1 x accumulation 8 trains on what batch 8 does, and a resumed run continues the
same curve without any saved generator.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from diffpref.backbones import Family
from diffpref.data.encode import EncodedPreferences
from diffpref.probes import AnyBatch, Batch, StepBatch
from diffpref.run.randomness import generator, index_at
from diffpref.sources.chains import EncodedChains


@dataclass(frozen=True)
class Drawing:
    """How a group's randomness is drawn.

    `repeats` 0 draws anew at every position of the run; n gives each group n draws that are used in turn."""

    family: Family
    seed: int
    flip: bool = False
    empty: float = 0.0
    shared_noise: bool = True
    repeats: int = 0

    def place(self, position: int, count: int) -> tuple[object, ...]:
        """What the draws of a position depend on, beside the seed."""
        if not self.repeats:
            return ("group", position)
        return ("kept", index_at(self.seed, position, count), position // count % self.repeats)


class _Stream(Dataset):
    def __init__(self, data: EncodedPreferences | EncodedChains, drawing: Drawing):
        self.data, self.drawing = data, drawing
        self._order: tuple[int, list[int]] = (-1, [])

    def _index(self, position: int) -> int:
        """The group at a position; chains come in bundles of those that share their steps."""
        seed, data = self.drawing.seed, self.data
        if not isinstance(data, EncodedChains):
            return index_at(seed, position, len(data))
        epoch, place = divmod(position, len(data))
        if self._order[0] != epoch:
            order = torch.randperm(len(data.bundles), generator=generator(seed, "epoch", epoch)).tolist()
            self._order = (epoch, [group for bundle in order for group in data.bundles[bundle]])
        return self._order[1][place]

    def __getitem__(self, positions: Sequence[int]) -> AnyBatch:  # type: ignore[override]
        data, how = self.data, self.drawing
        indices = [self._index(position) for position in positions]
        places = [how.place(position, len(data)) for position in positions]
        draws = [generator(how.seed, *place) for place in places]
        coins = torch.stack([torch.rand(2, generator=draw) for draw in draws])
        dropped = [bool(coin < how.empty) for coin in coins[:, 1]]
        if isinstance(data, EncodedChains):
            candidates, x_s, t, s = data.steps(indices, dropped)
            return StepBatch(candidates, t, x_s, s, data.names(indices))
        candidates = data.candidates(indices, [how.flip and bool(coin < 0.5) for coin in coins[:, 0]], dropped)
        t = torch.stack([how.family.draw_t(draw) for draw in draws])
        shape = candidates.x0.shape[2:] if how.shared_noise else candidates.x0.shape[1:]
        eps = torch.stack([torch.randn(shape, generator=draw) for draw in draws])
        eps = eps[:, None].expand_as(candidates.x0) if how.shared_noise else eps
        return Batch(candidates, t, eps, tuple(repr((how.seed, *place)) for place in places))


def batches(
    data: EncodedPreferences | EncodedChains,
    drawing: Drawing,
    *,
    size: int,
    first_step: int,
    steps: int,
    accumulation: int,
    share: tuple[int, int],
) -> Iterator[AnyBatch]:
    """This process's batches of steps first_step to steps - 1, `accumulation` for each step, read on demand.

    The groups of a process in a step are neighbours, so that they may share what they have in common."""
    rank, processes = share

    def positions() -> Iterator[list[int]]:
        for step in range(first_step, steps):
            for part in range(accumulation):
                start = ((step * processes + rank) * accumulation + part) * size
                yield list(range(start, start + size))

    # batch_size None: each item of the sampler is a list of positions, and the data set returns the whole batch.
    return iter(
        DataLoader(_Stream(data, drawing), batch_size=None, sampler=positions(), collate_fn=lambda batch: batch)  # type: ignore[arg-type]
    )
