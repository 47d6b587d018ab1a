"""A seventh method in one file: IPO (Azar et al. 2023, arXiv 2310.12036). It trains by its address:

    diffpref train --config configs/tiny-sdxl/dpo.yaml --objective examples/add_an_objective.py:IPO

DPO's sigmoid never has enough of a margin; IPO asks for one of 1 / (2 tau) and no more. An objective sees one number
for each candidate and model, so this is all there is to write: what it learns from, its settings, its loss.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor

from diffpref.objectives.alarms import Collapse
from diffpref.types import Alarm, Errors


@dataclass(frozen=True)
class IPO:
    """(beta (r_chosen - r_rejected) - 1 / (2 tau))^2 (eq. 17, with the log-ratios scaled by beta)."""

    candidates: ClassVar[str] = "pairs"
    scaling: ClassVar[str] = "none"
    alarm: ClassVar[Alarm] = Collapse()

    beta: Annotated[float, Gt(0)] = 2000.0
    """Inverse temperature on mean squared errors, as DPO's."""
    tau: Annotated[float, Gt(0)] = 0.5
    """Strength of the regularization: the margin that is asked for is 1 / (2 tau) nats."""

    def __call__(self, errors: Errors, scores: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
        """The loss of each pair; a pair of equal scores costs nothing."""
        preference = (scores[:, 0] - scores[:, 1]).sign()
        r = errors.log_ratio
        return (self.beta * (preference * (r[:, 0] - r[:, 1])) - 1 / (2 * self.tau)).square() * preference.abs()
