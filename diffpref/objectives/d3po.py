"""D3PO (Yang et al. 2023, arXiv 2311.13231): DPO on the steps of the sampler, with clipped ratios."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt, Lt
from jaxtyping import Float
from torch import Tensor

from diffpref.objectives.alarms import Collapse
from diffpref.settings import bounds
from diffpref.types import Alarm, Errors


@dataclass(frozen=True)
class D3PO:
    """-log sigmoid(beta (h_0 log rho_0 + h_1 log rho_1)), rho = exp(r) within 1 +- clip, h = +1 better, -1 worse.

    The errors are those of a stored sampler step, (next latent - mean)^2 / variance, so r is the log-density ratio of
    that step (eq. 14) in nats per element, as in the official code; `beta` and `clip` are tied to the mean.

    `clip_style`: the official code clamps ("clamp"), which leaves a ratio outside 1 +- clip without a gradient on
    either side, also one that drifted the wrong way. "ppo" bounds only what is already won, the better picture's ratio
    above and the worse one's below, and so keeps the gradient back. "none" is the paper's eq. 14, which has no clip.

    >>> errors = Errors(policy=torch.tensor([[0.9, 1.1]]), reference=torch.ones(1, 2))
    >>> D3PO(beta=0.1, clip=0.1)(errors, torch.tensor([[1.0, 0.0]]))
    tensor([0.6882])
    """

    candidates: ClassVar[str] = "chain_pairs"
    """What a group holds: a sampler step of the better and of the worse of two chains."""
    scaling: ClassVar[str] = "none"
    """How rewards become scores: as they are, for only their order counts."""
    alarm: ClassVar[Alarm] = Collapse()
    """Both errors of a pair grow."""

    beta: Annotated[float, Gt(0)] = 0.1
    """Inverse temperature on the log-density ratio of a step, mean over elements; the published runs use 0.1."""
    clip: Annotated[float, Gt(0), Lt(1)] = 0.1
    """How far the density ratio may count away from 1, in (0, 1); published runs use 0.1. clip_style none: no clip."""
    clip_style: Literal["clamp", "ppo", "none"] = "clamp"
    """Clip both sides as the official code, only what is won as PPO, or nothing as the paper prints it."""

    def __post_init__(self) -> None:
        bounds.check(self)
        if self.clip_style not in ("clamp", "ppo", "none"):
            raise ValueError(f"clip_style must be one of clamp, ppo, none, got {self.clip_style!r}.")

    def __call__(self, errors: Errors, scores: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
        """The loss of each pair's step, in nats; a pair of equal scores costs log 2 without a gradient.

        Raises:
            ValueError: not two candidates.
        """
        if scores.shape[1] != 2:
            raise ValueError(f"D3PO compares two candidates, got {scores.shape[1]}: turn ranked lists into pairs.")
        r = errors.log_ratio
        preference = (scores - scores.flip(1)).sign().to(r.dtype)
        low, high = math.log1p(-self.clip), math.log1p(self.clip)  # of the logarithm: exp(r) would overflow
        if self.clip_style == "clamp":
            r = r.clamp(low, high)
        elif self.clip_style == "ppo":
            r = torch.where(preference > 0, r.clamp(max=high), r.clamp(min=low))
        return -F.logsigmoid(self.beta * (preference * r).sum(1))
