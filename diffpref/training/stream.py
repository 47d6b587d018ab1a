"""The order of the data and all randomness of a run, as functions of (seed, position).

Position p counts groups since the start of the run, over all processes. A group's t, noise, mirroring and caption
dropout depend on nothing else, so batch 1 x accumulation 8 trains on what batch 8 does, and a resumed run continues the
same curve without any saved generator.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffpref.backbones import Family
from diffpref.data.encode import EncodedPreferences
from diffpref.path import GaussianPath
from diffpref.types import Candidates, Cond


def generator(seed: int, *place: object) -> torch.Generator:
    """A CPU generator for a place in the run: equal on every device and machine."""
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, "epoch", epoch))


def index_at(seed: int, position: int, count: int) -> int:
    """The group at a position: each epoch is a permutation of its own."""
    return int(_epoch_order(seed, position // count, count)[position % count])


@dataclass(frozen=True)
class Batch:
    """Groups with the randomness of their probe: t in the path's unit, eps shared within each group."""

    candidates: Candidates
    t: Tensor
    eps: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        c = self.candidates
        cond: Cond = {name: value.to(device, non_blocking=True) for name, value in c.cond.items()}
        moved = Candidates(c.x0.to(device, non_blocking=True), c.scores.to(device), cond)
        return Batch(moved, self.t.to(device), self.eps.to(device, non_blocking=True))


class _Stream(Dataset):
    def __init__(
        self, data: EncodedPreferences, family: Family, path: GaussianPath, flip: bool, empty: float, seed: int
    ):
        self.data, self.family, self.path = data, family, path
        self.flip, self.empty, self.seed = flip, empty, seed

    def __getitem__(self, positions: Sequence[int]) -> Batch:  # type: ignore[override]
        draws = [generator(self.seed, "group", position) for position in positions]
        coins = torch.stack([torch.rand(2, generator=draw) for draw in draws])
        candidates = self.data.candidates(
            [index_at(self.seed, position, len(self.data)) for position in positions],
            [self.flip and bool(coin < 0.5) for coin in coins[:, 0]],
            [bool(coin < self.empty) for coin in coins[:, 1]],
        )
        t = torch.stack([self.family.draw_t(self.path, draw) for draw in draws])
        eps = torch.stack([torch.randn(candidates.x0.shape[2:], generator=draw) for draw in draws])
        return Batch(candidates, t, eps[:, None].expand_as(candidates.x0).contiguous())


def batches(
    data: EncodedPreferences,
    family: Family,
    path: GaussianPath,
    *,
    flip: bool,
    empty: float,
    seed: int,
    size: int,
    first_step: int,
    steps: int,
    accumulation: int,
    share: tuple[int, int],
) -> Iterator[Batch]:
    """This process's batches of steps first_step to steps - 1, `accumulation` for each step, read on demand."""
    rank, processes = share

    def positions() -> Iterator[list[int]]:
        for step in range(first_step, steps):
            for part in range(accumulation):
                start = ((step * accumulation + part) * processes + rank) * size
                yield list(range(start, start + size))

    stream = _Stream(data, family, path, flip, empty, seed)
    # batch_size None: each item of the sampler is a list of positions, and the data set returns the whole batch.
    return iter(DataLoader(stream, batch_size=None, sampler=positions(), collate_fn=lambda batch: batch))  # type: ignore[arg-type]
