"""All randomness of a run as functions of (seed, place): nothing is reseeded, and no generator has to be saved."""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


def generator(seed: int, *place: object) -> torch.Generator:
    """A CPU generator for a place in the run: equal on every device and machine."""
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """A permutation of `count` places, another one in each epoch."""
    return torch.randperm(count, generator=generator(seed, "epoch", epoch))


def index_at(seed: int, position: int, count: int) -> int:
    """The group at a position: each epoch is a permutation of its own."""
    return int(epoch_order(seed, position // count, count)[position % count])


def positions_of(step: int, part: int, *, size: int, accumulation: int, share: tuple[int, int]) -> range:
    """Where one process's batch lies in the run's order: batch 1 x accumulation 8 sees the groups that batch 8 does.

    The batches of a process in a step are neighbours, so that they may share what they have in common.

    Args:
        part: which of the step's `accumulation` batches of this process.
        size: groups in a batch.
        share: (this process, how many processes)."""
    rank, processes = share
    start = ((step * processes + rank) * accumulation + part) * size
    return range(start, start + size)
