"""PickScore's loss (Kirstain et al. 2023, arXiv 2305.01569): a mean over the step; every prompt weighs the same.

Axes: n pairs, 2 the images of a pair.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from diffpref.rewards.training.losses.entropy import cross_entropy, entropy


@dataclass(frozen=True)
class PickScoreLoss:
    """sum_i w_i / total (CE_i - H(y_i)) over all pairs of the step, on whichever process they are.

    yuvalkirstain/PickScore:trainer/criterions/clip_criterion.py, in_batch_negatives=False; for ties, the only labels
    there besides 0 and 1, H is the log 2 that is taken away there."""

    def share_of_step(
        self,
        scores: Float[Tensor, "n 2"],
        labels: Float[Tensor, "n 2"],
        *,
        weights: Float[Tensor, " n"],
        total: float,
        processes: int,
    ) -> Float[Tensor, ""]:
        excess = cross_entropy(scores, labels) - entropy(labels)
        # The gradients are averaged over the processes, and this is a sum over them.
        return processes * (weights * excess).sum() / total

    def limit_scale(self, logit_scale: Tensor) -> None:
        """The published code sets no bounds."""
