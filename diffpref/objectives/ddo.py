"""DDO (Zheng et al., ICML 2025, arXiv 2503.01103): the model against its own samples, as a discriminator."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from diffpref.objectives.alarms import Saturation
from diffpref.settings import bounds
from diffpref.types import Alarm, Errors


@dataclass(frozen=True)
class DDO:
    """-log sigmoid(beta r) of real pictures - alpha log sigmoid(-beta r) of the reference's own samples (eq. 13).

    Real pictures have score 1 and fake ones 0; a group may hold any mix of them, each kind counts by its mean and a
    missing one counts 0. For alpha = 1 the loss is least where p_policy is p_ref^(1 - 1 / beta_paper)
    p_data^(1 / beta_paper) up to a factor (theorem 3.3).

    The paper's r sums over D elements and has no 1/2, so its beta is beta = 2 * D * beta_paper here; its errors carry
    the EDM weight (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, which belongs into the probe. The loss is not
    divided by max(alpha, 1), which the official VAR code does; its diffusion training code is not public.

    >>> errors = Errors(policy=torch.tensor([[0.9, 1.1]]), reference=torch.ones(1, 2))
    >>> DDO(alpha=4.0, beta=300.0)(errors, torch.tensor([[1.0, 0.0]]))
    tensor([1.5295e-06])
    """

    candidates: ClassVar[str] = "real_fake"
    """What a group holds: pictures of the data and samples of the reference."""
    scaling: ClassVar[str] = "none"
    """How rewards become scores: there are none, 1 is real and 0 is fake."""
    alarm: ClassVar[Alarm] = Saturation()
    """Real and fake are told apart too easily."""

    alpha: Annotated[float, Ge(0)] = 4.0
    """Weight of the fake pictures; published diffusion runs use 0.5 to 6."""
    beta: Annotated[float, Gt(0)] = 300.0
    """Inverse temperature on mean squared errors: 2 * 3072 * 0.05 = 307 for CIFAR-10; published beta is 0.01 to 0.1."""

    def __post_init__(self) -> None:
        bounds.check(self)

    def __call__(self, errors: Errors, scores: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
        """The loss of each group, in nats; (1 + alpha) log 2 for real and fake where policy and reference agree.

        Raises:
            ValueError: a score other than 1 and 0.
        """
        is_real = scores == 1
        if not (is_real | (scores == 0)).all():
            other = scores[~(is_real | (scores == 0))][0]
            raise ValueError(f"scores must be 1 for real and 0 for fake pictures, got {other:g}: label every picture.")
        r = errors.log_ratio
        real = is_real.to(r.dtype)
        fake = 1 - real
        loss = -F.logsigmoid(self.beta * ((real - fake) * r))
        of_real, of_fake = (kind / kind.sum(1, keepdim=True).clamp(min=1) for kind in (real, fake))
        return ((of_real + self.alpha * of_fake) * loss).sum(1)
