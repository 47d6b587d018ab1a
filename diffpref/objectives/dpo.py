"""Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from diffpref.objectives.alarms import Collapse
from diffpref.settings import bounds
from diffpref.types import Alarm, Errors


@dataclass(frozen=True)
class DPO:
    """-log sigmoid(beta (r_chosen - r_rejected)), with r = (reference error - policy error) / 2 (eq. 14).

    The errors are means over elements and r carries the 1/2, so `beta` is the `beta_dpo` of the official code. The
    paper's beta T omega on summed errors is `beta = 2 * D * beta_paper` for D elements.

    Plain DPO is satisfied when the rejected error grows faster than the chosen one, and then both rise until the
    pictures break. `anchor` adds anchor * beta / 2 * relu(chosen policy error - chosen reference error): it costs
    nothing while the policy still fits the chosen pictures as well as the reference does. `sft` adds
    sft * beta / 2 * (chosen policy error - chosen reference error): it keeps pulling towards the chosen pictures.

    >>> errors = Errors(policy=torch.tensor([[0.9, 1.1]]), reference=torch.ones(1, 2))
    >>> DPO(beta=10.0)(errors, torch.tensor([[1.0, 0.0]]))
    tensor([0.3133])
    """

    candidates: ClassVar[str] = "pairs"
    """What a group holds: a better and a worse picture."""
    scaling: ClassVar[str] = "none"
    """How rewards become scores: as they are, for only their order counts."""
    alarm: ClassVar[Alarm] = Collapse()
    """Both errors of a pair grow."""

    beta: Annotated[float, Gt(0)] = 5000.0
    """Inverse temperature on mean squared errors; published runs use 2000 to 5000."""
    anchor: Annotated[float, Ge(0)] = 0.0
    """Weight of the one-sided anchor on the chosen error; 0 is plain DPO."""
    sft: Annotated[float, Ge(0)] = 0.0
    """Weight of supervised fitting of the chosen pictures; 0 is plain DPO."""

    def __post_init__(self) -> None:
        bounds.check(self)

    def __call__(self, errors: Errors, scores: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
        """The loss of each pair, in nats; a pair of equal scores prefers neither and costs log 2 without a gradient.

        Raises:
            ValueError: not two candidates.
        """
        if scores.shape[1] != 2:
            raise ValueError(f"DPO compares two candidates, got {scores.shape[1]}: turn ranked lists into pairs.")
        preference = (scores[:, 0] - scores[:, 1]).sign()
        r = errors.log_ratio
        # beta last: in the scores' own type, bfloat16 would round 5000 to 4992.
        loss = -F.logsigmoid(self.beta * (preference * (r[:, 0] - r[:, 1])))
        if self.anchor or self.sft:
            chosen = (preference < 0).long()[:, None]
            drop = -r.gather(1, chosen)[:, 0] * preference.abs()
            loss = loss + self.beta * (self.anchor * F.relu(drop) + self.sft * drop)
        return loss
