"""How a pair's two scores become the probability that each image is the preferred one.

Axes: n pairs, 2 the images of a pair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Labels(Protocol):
    """What two scores say. A member is a frozen dataclass."""

    def probabilities(self, scores: Float[Tensor, "n 2"], source: str) -> Float[Tensor, "n 2"]:
        """The probability that each of two images is preferred.

        Args:
            scores: of each pair's images; higher is better.
            source: what an error message begins with.

        Raises:
            ValueError: scores that cannot be read in this way.
        """
        ...


@dataclass(frozen=True)
class OrderLabels:
    """1 and 0 by which score is higher, or 0.5 twice for a tie."""

    def probabilities(self, scores: Float[Tensor, "n 2"], source: str) -> Float[Tensor, "n 2"]:
        return 0.5 + 0.5 * torch.sign(scores - scores.flip(1))


@dataclass(frozen=True)
class ScoreLabels:
    """The two scores are the probabilities, as shares of votes are."""

    def probabilities(self, scores: Float[Tensor, "n 2"], source: str) -> Float[Tensor, "n 2"]:
        wrong = torch.where((scores < 0).any(1) | ((scores.sum(1) - 1).abs() > 1e-6))[0]
        if len(wrong):
            raise ValueError(
                f"{source}: labels: scores needs two probabilities that sum to 1 in each row, got "
                f"{tuple(scores[wrong[0]].tolist())}; with labels: order only which score is higher matters."
            )
        return scores


LABELS: Mapping[str, type] = {"order": OrderLabels, "scores": ScoreLabels}
"""The choices of `labels:` by name."""


def labels_of(scores: Sequence[tuple[float, ...]], kind: Labels, source: str) -> Float[Tensor, "n 2"]:
    """The probability that each of two images is preferred, in float64.

    Args:
        scores: two for each pair, higher is better.

    Raises:
        ValueError: scores that `kind` cannot read, or nothing but ties.
    """
    given = torch.tensor([list(pair) for pair in scores], dtype=torch.float64).reshape(-1, 2)
    labels = kind.probabilities(given, source)
    if not len(labels) or (labels[:, 0] == labels[:, 1]).all():
        raise ValueError(f"{source}: all {len(labels)} pairs are ties: there is no preference in them to learn from.")
    return labels
