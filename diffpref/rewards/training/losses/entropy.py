"""Cross-entropy and entropy of a pair's labels, of which every loss is made.

Axes: n pairs, 2 the images of a pair.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def cross_entropy(scores: Float[Tensor, "n 2"], labels: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    """-sum_k y_k log softmax(s)_k of each pair, in nats.

    Args:
        scores: s, the logits of a Bradley-Terry model: exp(logit_scale) cos(image, prompt).
        labels: y, the probability that each image is the preferred one; 0.5 twice for a tie."""
    return -(labels * scores.log_softmax(-1)).sum(-1)


def entropy(labels: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    """-sum_k y_k log y_k in nats: the part of the cross-entropy that no scores can remove; log 2 for a tie."""
    return torch.special.entr(labels).sum(-1)
