"""RankDPO (Karthik et al. 2024, arXiv 2410.18013): DPO over ranked lists, each pair at its cost in DCG."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor

from diffpref.objectives.alarms import Collapse
from diffpref.settings import bounds
from diffpref.types import Alarm, Errors


def _all_pairs(weights: Float[Tensor, "b k k"]) -> float:
    k = weights.shape[1]
    return k * (k - 1) / 2


def _all_weights(weights: Float[Tensor, "b k k"]) -> Float[Tensor, " b"]:
    return weights.sum((1, 2)).clamp(min=torch.finfo(weights.dtype).tiny)


def _nothing(weights: Float[Tensor, "b k k"]) -> float:
    return 1.0


DIVISORS: Mapping[str, Callable[[Tensor], Tensor | float]] = {
    "sum": _nothing,
    "pairs": _all_pairs,
    "weights": _all_weights,
}
"""What the sum over a list's pairs is divided by, by the name of `normalize`."""


@dataclass(frozen=True)
class RankDPO:
    """Sum over the pairs with i preferred to j of Delta_ij * -log sigmoid(beta (r_i - r_j)) (eq. 7).

    Delta_ij = |2^s_i - 2^s_j| |1 / D_i - 1 / D_j| with D = log(1 + rank) and rank 1 the best score s, not the model's
    best (eq. 6 and alg. 2; eq. 7 writes "i > j", and only "i preferred" agrees with its sign). Equal scores weigh
    nothing against each other; among themselves they share the mean of 1 / D over their ranks, which is the mean over
    the orders that the paper leaves open.

    `beta` has the convention of DPO: the paper's s_i = policy error - reference error is -2 r_i, so on the same errors
    beta is twice the paper's, and from its sums over D elements beta = 2 * D * beta_paper. There is no public code.

    >>> errors = Errors(policy=torch.tensor([[0.9, 1.1]]), reference=torch.ones(1, 2))
    >>> RankDPO(beta=10.0)(errors, torch.tensor([[1.0, 0.0]]))
    tensor([0.1668])
    """

    candidates: ClassVar[str] = "lists"
    """What a group holds: k >= 2 pictures of one prompt."""
    scaling: ClassVar[str] = "win_fraction"
    """How rewards become scores: the share of the other candidates that each beats, averaged over the rewards."""
    alarm: ClassVar[Alarm] = Collapse()
    """Both errors of a pair grow."""

    beta: Annotated[float, Gt(0)] = 5000.0
    """Inverse temperature on mean squared errors; the paper gives none, this is Diffusion-DPO's for SDXL."""
    discount: Literal["ln", "log2"] = "ln"
    """Logarithm of the rank discount: natural as the paper prints it, or base 2 as usual in DCG (a loss ln 2 lower)."""
    normalize: Literal["sum", "pairs", "weights"] = "sum"
    """Plain sum over the pairs as in the paper, its mean over all k (k - 1) / 2, or the mean weighted by Delta."""

    def __post_init__(self) -> None:
        bounds.check(self)
        for name, known in (("discount", ("ln", "log2")), ("normalize", tuple(DIVISORS))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")

    def __call__(self, errors: Errors, scores: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
        """The loss of each list, in nats times Delta; a list of equal scores costs 0 without a gradient.

        Raises:
            ValueError: fewer than two candidates, or a score outside [0, 1].
        """
        k = scores.shape[1]
        if k < 2:
            raise ValueError(f"RankDPO ranks at least two candidates, got {k}: give every prompt a list.")
        if not ((scores >= 0) & (scores <= 1)).all():
            span = f"{scores.min():g} to {scores.max():g}"
            raise ValueError(f"scores must be in [0, 1], got {span}: use the share of the others that each beats.")
        r = errors.log_ratio
        weights = self._weights(scores.to(r.dtype))
        loss = -F.logsigmoid(self.beta * (r[:, :, None] - r[:, None, :]))
        total = (weights * loss).sum((1, 2))
        return total / DIVISORS[self.normalize](weights)

    def _weights(self, scores: Float[Tensor, "b k"]) -> Float[Tensor, "b k k"]:
        """Delta_ij where i is preferred to j, else 0."""
        rank = 1 + scores.argsort(1, descending=True).argsort(1).to(scores.dtype)
        inverse = 1 / (rank.log1p() if self.discount == "ln" else (1 + rank).log2())
        tied = (scores[:, :, None] == scores[:, None, :]).to(scores.dtype)
        inverse = (tied * inverse[:, None, :]).sum(2) / tied.sum(2)
        gain = scores.exp2()  # of 2^s - 1, the 1 cancels
        return F.relu(gain[:, :, None] - gain[:, None, :]) * (inverse[:, :, None] - inverse[:, None, :])
