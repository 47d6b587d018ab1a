"""Held-out pairs, on which the weights that are kept are chosen."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from diffpref.rewards.clip_hf import Processor
from diffpref.rewards.training.config import Pairs, Validation
from diffpref.rewards.training.data import PairData, batches, read_pairs
from diffpref.rewards.training.evaluate import Predictions, accuracy
from diffpref.rewards.training.labels import Labels
from diffpref.rewards.training.losses import cross_entropy, entropy
from diffpref.rewards.training.model import PairScorer


@dataclass(frozen=True)
class HeldOut:
    """The pairs, and how often and how many at once they are scored."""

    data: PairData
    every: int
    """Training steps between two validations."""
    size: int
    """Pairs that pass through the towers at once, for each process."""


def read_held_out(pairs: Pairs, labels: Labels, validation: Validation) -> HeldOut | None:
    """The validation pairs, read as the training pairs are; None where the settings name none."""
    if not validation.validation_dataset_name:
        return None
    data = read_pairs(
        pairs,
        labels,
        validation.validation_dataset_name,
        split=validation.validation_split,
        max_rows=validation.max_validation_samples,
    )
    return HeldOut(data, validation.validation_steps, validation.validation_batch_size)


@torch.no_grad()
def validate(
    network: PairScorer, held_out: HeldOut, processor: Processor, accelerator: Accelerator
) -> dict[str, float]:
    """Accuracy without ties and mean excess cross-entropy (nats per pair) on all pairs, equal on every process."""
    data, size = held_out.data, held_out.size
    own = range(accelerator.process_index, len(data), accelerator.num_processes)
    chunks = [list(own[start : start + size]) for start in range(0, len(own), size)]
    scored: list[tuple[int, list[float]]] = []
    network.eval()
    for chunk, batch in zip(chunks, batches(data, processor, chunks, workers=0), strict=True):
        batch = batch.to(accelerator.device)
        with accelerator.autocast():
            scores = network(batch.pixels, batch.ids)
        scored += zip(chunk, scores.double().cpu().tolist(), strict=True)
    network.train()
    gathered = dict(gather_object(scored))
    scores = torch.tensor([gathered[i] for i in range(len(data))], dtype=torch.float64)
    excess = cross_entropy(scores, data.labels) - entropy(data.labels)
    predictions = Predictions(scores[:, 0] - scores[:, 1], data.labels, ("",) * len(data))
    return {"validation/accuracy": accuracy(predictions).rate, "validation/loss": excess.mean().item()}
