"""Pairs of images as a CLIP is trained on them: labels, weights, and batches that are decoded on demand.

Axes: n pairs, 2 the images of a pair, s the square's side in pixels, l tokens.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
from diffpref.rewards.training.labels import Labels, labels_of
from diffpref.run.randomness import index_at, positions_of


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
    """Preferences between two images each."""

    pairs: Preferences
    labels: Float[Tensor, "n 2"]
    """The probability that each image is the preferred one."""
    weights: Float[Tensor, " n"]
    """1 / the number of pairs with the same prompt, in float64."""
    fingerprint: str
    """Of the prompts and labels in their order; the images' bytes are not read for it."""

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, indices: Sequence[int], processor: Processor) -> PairBatch:
        """These pairs, with images preprocessed by the very rule that the PickScore reward has.

        Raises:
            ValueError: an image that is missing or cannot be decoded; names the row.
        """
        rows = [self.pairs[index] for index in indices]
        images = []
        for row in rows:
            try:
                images += [decode(image) for image in row.images]
            except BadRow as problem:
                remedy = "`diffpref data validate` finds all such rows, `diffpref data convert` leaves them out."
                raise ValueError(f"{row.where}: {problem} {remedy}") from None
        pixels = processor.rule(images, torch.device("cpu")).unflatten(0, (len(rows), 2))
        ids = processor.tokens([row.prompt for row in rows])
        where = torch.tensor(list(indices))
        return PairBatch(pixels, ids, self.labels[where].float(), self.weights[where].float())


def read_pairs(
    settings: Pairs, labels: Labels, source: str, *, split: str = "train", max_rows: int | None = None
) -> PairData:
    """The pairs of a source, none of whose images is decoded yet.

    Args:
        settings: how its rows are read; the source, its split and `max_rows` are those given here.

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
    probabilities = labels_of(pairs.scores, labels, source)
    prompts = [pairs.prompt(position) for position in range(len(pairs))]
    counts = Counter(prompts)
    weights = torch.tensor([1 / counts[prompt] for prompt in prompts], dtype=torch.float64)
    fingerprint = sha256("\0".join(prompts).encode() + probabilities.numpy().tobytes())[:16]
    return PairData(pairs, probabilities, weights, fingerprint)


def order(
    seed: int, count: int, steps: range, *, size: int, accumulation: int, share: tuple[int, int]
) -> list[list[int]]:
    """The pairs of each batch of one process, `accumulation` batches a step; each epoch is a permutation of its own.

    Args:
        size: pairs in a batch.
        share: (this process, how many processes)."""
    return [
        [
            index_at(seed, position, count)
            for position in positions_of(step, part, size=size, accumulation=accumulation, share=share)
        ]
        for step in steps
        for part in range(accumulation)
    ]


def total_weight(data: PairData, seed: int, step: int, effective: int) -> float:
    """The sum of the weights of all pairs of a step, of every process: known from the order, with no communication."""
    places = [index_at(seed, position, len(data)) for position in range(step * effective, (step + 1) * effective)]
    return data.weights[torch.tensor(places)].sum().item()


@dataclass(frozen=True)
class _Batches(Dataset):
    data: PairData
    processor: Processor

    def __getitem__(self, indices: Sequence[int]) -> PairBatch:
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
            sampler=indices,
            num_workers=workers,
            collate_fn=lambda batch: batch,
        )
    )
