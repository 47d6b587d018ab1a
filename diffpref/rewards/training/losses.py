"""What PickScore and HPSv2 are trained with: a cross-entropy over the two pictures of a prompt.

Axes: n pairs, 2 the pictures of a pair.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

LossName = Literal["pickscore", "hps"]


def cross_entropy(scores: Float[Tensor, "n 2"], labels: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    """-sum_k y_k log softmax(s)_k of each pair, in nats.

    Args:
        scores: s, the logits of a Bradley-Terry model: exp(logit_scale) cos(picture, prompt).
        labels: y, the probability that each picture is the preferred one; 0.5 twice for a tie."""
    return -(labels * scores.log_softmax(-1)).sum(-1)


def entropy(labels: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    """-sum_k y_k log y_k in nats: the part of the cross-entropy that no scores can remove; log 2 for a tie."""
    return torch.special.entr(labels).sum(-1)


def share_of_step(
    loss: LossName,
    scores: Float[Tensor, "n 2"],
    labels: Float[Tensor, "n 2"],
    *,
    weights: Float[Tensor, " n"],
    total: float,
    processes: int,
) -> Float[Tensor, ""]:
    """What these pairs add to the step's loss, in nats; its gradient is summed over a process's batches, and then
    averaged over the processes, as data parallelism does.

    pickscore: sum_i w_i / total (CE_i - H(y_i)) over all pairs of the step, wherever they are, hence the factor
    `processes` (yuvalkirstain/PickScore:trainer/criterions/clip_criterion.py, in_batch_negatives=False; for ties, the
    only labels there besides 0 and 1, H is the log 2 that is taken away there).
    hps: sum_i CE_i over the pairs of one process, no weights, averaged over the processes
    (tgxs002/HPSv2:hpsv2/src/open_clip/loss.py, HPSLoss).

    Args:
        weights: 1 / how many examples the pair's prompt has in the data; pickscore's only.
        total: the sum of the weights of all the step's pairs, of every process; pickscore's only.
        processes: how many processes share the step."""
    if loss == "hps":
        return cross_entropy(scores, labels).sum()
    excess = cross_entropy(scores, labels) - entropy(labels)
    return processes * (weights * excess).sum() / total
