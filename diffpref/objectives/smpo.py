"""SmPO (SmPO-Diffusion, ICML 2025, arXiv 2506.02698): DPO on smoothed preferences."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor

from diffpref.objectives.alarms import Collapse
from diffpref.settings import bounds
from diffpref.types import Alarm, Errors


@dataclass(frozen=True)
class SmPO:
    """-log sigmoid(beta W (r_0 - r_1)), W = gamma (2 P - 1), P = e^s_0 / (e^s_0 + e^s_1) for the scores s of the pair.

    Each picture's likelihood becomes p_0^alpha p_1^(gamma - alpha) and the mirror image of it, alpha = gamma P
    (eqs. 8 and 9), and DPO on those has the factor 2 alpha - gamma = W, which is gamma tanh((s_0 - s_1) / 2). Swapped
    pictures swap its sign, so no picture has to be named the winner; gamma = 1 and P = 1 would be DPO. With scores in
    [0, 1] |W| stays below 0.4622 gamma.

    `beta` is the `beta_dpo` of the official code, whose 1/2 sits in r; the paper prints it without the 1/2 and on
    summed errors: beta = 2 * D * beta_paper for D elements. Pictures of equal rewards, of which the code calls the
    second the winner, have W = 0 there and here.

    >>> errors = Errors(policy=torch.tensor([[0.9, 1.1]]), reference=torch.ones(1, 2))
    >>> SmPO(beta=10.0, gamma=10.0)(errors, torch.tensor([[1.0, 0.0]]))
    tensor([0.0098])
    """

    candidates: ClassVar[str] = "pairs"
    """What a group holds: two pictures and their rewards."""
    scaling: ClassVar[str] = "min_max"
    """How rewards become scores: scaled to [0, 1] by the smallest and largest of the whole data set."""
    alarm: ClassVar[Alarm] = Collapse()
    """Both errors of a pair grow."""

    beta: Annotated[float, Gt(0)] = 5000.0
    """Inverse temperature on mean squared errors; published runs use 2000 (SD1.5) and 5000 (SDXL)."""
    gamma: Annotated[float, Gt(0)] = 10.0
    """Strength of the smoothed preference; the published runs use 10."""

    def __post_init__(self) -> None:
        bounds.check(self)

    def __call__(self, errors: Errors, scores: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
        """The loss of each pair, in nats; a pair of equal scores costs log 2 without a gradient.

        Raises:
            ValueError: not two candidates, or a score outside [0, 1].
        """
        if scores.shape[1] != 2:
            raise ValueError(f"SmPO compares two candidates, got {scores.shape[1]}: turn ranked lists into pairs.")
        if not ((scores >= 0) & (scores <= 1)).all():
            span = f"{scores.min():g} to {scores.max():g}"
            raise ValueError(f"scores must be in [0, 1], got {span}: min-max scale the rewards over the data set.")
        r = errors.log_ratio
        reward = scores.to(r.dtype)
        factor = self.gamma * torch.tanh((reward[:, 0] - reward[:, 1]) / 2)
        return -F.logsigmoid(self.beta * (factor * (r[:, 0] - r[:, 1])))
