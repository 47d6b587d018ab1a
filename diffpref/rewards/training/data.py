"""Pairs of pictures as a CLIP is trained on them: labels, weights, and batches that are decoded on demand.

Axes: n pairs, 2 the pictures of a pair, s the square's side in pixels, l tokens.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffpref.data.bad_row import BadRow
from diffpref.data.columns import parse_columns
from diffpref.data.decode import decode
from diffpref.data.pairs import as_pairs
from diffpref.data.preferences import read_preferences
from diffpref.data.rows import Preferences
from diffpref.files.identity import sha256
from diffpref.rewards.clip_hf import Processor
from diffpref.rewards.training.config import Pairs
from diffpref.run.randomness import index_at


@dataclass(frozen=True)
class PairBatch:
    """Pairs in memory. Pixels are normalised as the model takes them, labels and weights as in `PairData`."""

    pixels: Float[Tensor, "n 2 3 s s"]
    ids: Int[Tensor, "n l"]
    labels: Float[Tensor, "n 2"]
    weights: Float[Tensor, " n"]

    def to(self, device: torch.device) -> "PairBatch":
        """The batch on a device."""
        parts = (self.pixels, self.ids, self.labels, self.weights)
        return PairBatch(*(part.to(device, non_blocking=True) for part in parts))


@dataclass(frozen=True)
class PairData:
    """Preferences between two pictures each."""

    pairs: Preferences
    labels: Float[Tensor, "n 2"]
    """The probability that each picture is the preferred one."""
    weights: Float[Tensor, " n"]
    """1 / the number of pairs with the same prompt, in float64."""
    fingerprint: str
    """Of the prompts and labels in their order; the pictures' bytes are not read for it."""

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, indices: Sequence[int], processor: Processor) -> PairBatch:
        """These pairs, with pictures preprocessed by the very rule that the PickScore reward has.

        Raises:
            ValueError: a picture that is missing or cannot be decoded; names the row.
        """
        rows = [self.pairs[index] for index in indices]
        pictures = []
        for row in rows:
            try:
                pictures += [decode(image) for image in row.images]
            except BadRow as problem:
                remedy = "`diffpref data validate` finds all such rows, `diffpref data convert` leaves them out."
                raise ValueError(f"{row.where}: {problem} {remedy}") from None
        pixels = processor.rule(pictures, torch.device("cpu")).unflatten(0, (len(rows), 2))
        ids = processor.tokens([row.prompt for row in rows])
        where = torch.tensor(list(indices))
        return PairBatch(pixels, ids, self.labels[where].float(), self.weights[where].float())


def labels_of(
    scores: Sequence[tuple[float, ...]], kind: Literal["order", "scores"], source: str
) -> Float[Tensor, "n 2"]:
    """The probability that each of two pictures is preferred, in float64.

    Args:
        scores: two for each pair, higher is better.
        kind: "order" reads which is higher, "scores" takes them as the probabilities.

    Raises:
        ValueError: "scores" that are no probabilities, or nothing but ties.
    """
    given = torch.tensor([list(pair) for pair in scores], dtype=torch.float64).reshape(-1, 2)
    bad = torch.where((given < 0).any(1) | ((given.sum(1) - 1).abs() > 1e-6))[0]
    if kind == "scores" and len(bad):
        raise ValueError(
            f"{source}: labels: scores needs two probabilities that sum to 1 in each row, got {scores[int(bad[0])]}; "
            "with labels: order only which score is higher matters."
        )
    labels = given if kind == "scores" else 0.5 + 0.5 * torch.sign(given - given.flip(1))
    if not len(labels) or (labels[:, 0] == labels[:, 1]).all():
        raise ValueError(f"{source}: all {len(labels)} pairs are ties: there is no preference in them to learn from.")
    return labels


def read_pairs(settings: Pairs, source: str, split: str, max_rows: int | None) -> PairData:
    """The pairs of a source, none of whose pictures is decoded yet.

    Raises:
        ValueError: no source, no known schema, a bad row, no row left, or no preference in the labels.
    """
    pairs = read_preferences(
        source,
        split=split,
        columns=parse_columns(settings.columns),
        on_bad_row=settings.on_bad_row,
        max_rows=max_rows,
        ties=settings.ties,
    )
    pairs = as_pairs(pairs, lists=settings.lists, ties=settings.ties)
    labels = labels_of(pairs.scores, settings.labels, source)
    prompts = [pairs.prompt(position) for position in range(len(pairs))]
    counts = Counter(prompts)
    weights = torch.tensor([1 / counts[prompt] for prompt in prompts], dtype=torch.float64)
    fingerprint = sha256("\0".join(prompts).encode() + labels.numpy().tobytes())[:16]
    return PairData(pairs, labels, weights, fingerprint)


def positions_of(step: int, part: int, *, size: int, accumulation: int, rank: int, processes: int) -> range:
    """Where a batch lies in the run's order: batch 1 x accumulation 8 sees the pairs that batch 8 does."""
    start = ((step * accumulation + part) * processes + rank) * size
    return range(start, start + size)


def order(
    seed: int, count: int, steps: range, *, size: int, accumulation: int, rank: int, processes: int
) -> list[list[int]]:
    """The pairs of each batch of one process, `accumulation` batches a step; each epoch is a permutation of its own."""
    parts = [(step, part) for step in steps for part in range(accumulation)]
    return [
        [
            index_at(seed, position, count)
            for position in positions_of(
                step, part, size=size, accumulation=accumulation, rank=rank, processes=processes
            )
        ]
        for step, part in parts
    ]


def total_weight(data: PairData, seed: int, step: int, effective: int) -> float:
    """The sum of the weights of all pairs of a step, of every process: known from the order, with no communication."""
    places = [index_at(seed, position, len(data)) for position in range(step * effective, (step + 1) * effective)]
    return data.weights[torch.tensor(places)].sum().item()


@dataclass(frozen=True)
class _Batches(Dataset):
    data: PairData
    processor: Processor

    def __getitem__(self, indices: Sequence[int]) -> PairBatch:  # type: ignore[override]
        return self.data.batch(indices, self.processor)


def batches(
    data: PairData, processor: Processor, indices: Sequence[Sequence[int]] | Iterator[Sequence[int]], *, workers: int
) -> Iterator[PairBatch]:
    """A batch for each list of indices, decoded in so many worker processes (0: in this one, on demand)."""
    # batch_size None: each item of the sampler is a list of indices, and the data set returns the whole batch.
    return iter(
        DataLoader(
            _Batches(data, processor),
            batch_size=None,
            sampler=indices,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=lambda batch: batch,
        )
    )
