"""What a run knows besides its weights: figures since its last line of metrics, and which weights are the best so far.

Axes: n pairs, 2 the images of a pair.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from diffpref.rewards.training.losses import cross_entropy, entropy


@torch.no_grad()
def sums_of(loss: Float[Tensor, ""], scores: Float[Tensor, "n 2"], labels: Float[Tensor, "n 2"]) -> Float[Tensor, " 5"]:
    """Sums over a batch: the loss, excess cross-entropy, pairs, right ones among the decided, decided ones."""
    side = (scores[:, 0] - scores[:, 1]) * (labels[:, 0] - labels[:, 1])
    decided = labels[:, 0] != labels[:, 1]
    right = 0.5 * ((side > 0).float() + (side >= 0).float()) * decided
    excess = cross_entropy(scores, labels) - entropy(labels)
    return torch.stack([loss, excess.sum(), excess.new_tensor(len(excess)), right.sum(), decided.float().sum()])


class Progress:
    """The sums of this process since the step of the last line of metrics, and the best validated weights."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(5, device=device)
        self.begun = 0
        self.best: tuple[int, float] | None = None
        """The step of the weights that were kept, and their accuracy on the validation pairs in [0, 1]."""

    def add(self, loss: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Count a batch."""
        self.sums += sums_of(loss, scores, labels)

    def summary(self, accelerator: Accelerator, done: int) -> dict[str, float]:
        """The figures of all processes' batches up to the step `done`; counting begins again."""
        whole: Any = accelerator.reduce(self.sums, "sum")
        loss, excess, count, right, decided = whole.tolist()
        steps, self.begun, self.sums = done - self.begun, done, torch.zeros_like(self.sums)
        return {
            "loss": loss / accelerator.num_processes / steps,
            "loss_per_pair": excess / count,
            "accuracy": right / decided if decided else float("nan"),
        }

    def keeps(self, step: int, accuracy: float) -> bool:
        """Whether these weights are the best so far; the later of equal ones, as
        yuvalkirstain/PickScore:trainer/accelerators/base_accelerator.py keeps it."""
        if self.best is not None and accuracy < self.best[1]:
            return False
        self.best = (step, accuracy)
        return True

    def pending(self, accelerator: Accelerator) -> dict[str, Any]:
        """What a checkpoint holds of it; every process must ask."""
        sums: Any = accelerator.gather(self.sums[None])
        return {"sums": sums.cpu(), "begun": self.begun, "best": list(self.best) if self.best else []}

    def restore(self, pending: Mapping[str, Any], process: int) -> None:
        """Go on from a checkpoint."""
        self.sums += pending["sums"][process].to(self.sums.device)
        self.begun = int(pending["begun"])
        self.best = (int(pending["best"][0]), float(pending["best"][1])) if pending["best"] else None
