"""HPSv2's loss (Wu et al. 2023, arXiv 2306.09341): a sum over the pairs of each process.

Axes: n pairs, 2 the images of a pair.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.rewards.training.losses.entropy import cross_entropy


@dataclass(frozen=True)
class HPSLoss:
    """sum_i CE_i over the pairs of one process, no weights, averaged over the processes.

    tgxs002/HPSv2:hpsv2/src/open_clip/loss.py, HPSLoss; after each step exp(logit_scale) is put back into [1, 100]."""

    def share_of_step(
        self,
        scores: Float[Tensor, "n 2"],
        labels: Float[Tensor, "n 2"],
        *,
        weights: Float[Tensor, " n"],
        total: float,
        processes: int,
    ) -> Float[Tensor, ""]:
        return cross_entropy(scores, labels).sum()

    @torch.no_grad()
    def limit_scale(self, logit_scale: Tensor) -> None:
        logit_scale.clamp_(0, math.log(100))
