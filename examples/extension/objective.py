"""An objective of your own: the hinge loss of SLiC-HF (Zhao et al. 2023, arXiv 2305.10425).

python -m diffpref.train --config configs/tiny-sdxl/dpo.yaml --objective examples/extension/objective.py:Hinge \
    --margin 0.5
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor

from diffpref.objectives.alarms import Collapse
from diffpref.types import Alarm, Errors


@dataclass(frozen=True)
class Hinge:
    """relu(margin - beta (r_chosen - r_rejected)): a pair that is won by the margin teaches nothing more."""

    candidates: ClassVar[str] = "pairs"
    """What a group holds: pairs, lists, chain_pairs or real_fake."""
    scaling: ClassVar[str] = "none"
    """How rewards become scores; none, where only their order counts."""
    alarm: ClassVar[Alarm] = Collapse()
    """When a run goes wrong: the errors of both images rise."""

    beta: Annotated[float, Gt(0)] = 2000.0
    """Inverse temperature on mean squared errors."""
    margin: Annotated[float, Gt(0)] = 1.0
    """The difference of beta r from which on a pair costs nothing, in nats."""

    def __call__(self, errors: Errors, scores: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
        """The loss of each pair; a pair of equal scores costs nothing."""
        preference = (scores[:, 0] - scores[:, 1]).sign()
        r = errors.log_ratio
        return F.relu(self.margin - self.beta * (preference * (r[:, 0] - r[:, 1]))) * preference.abs()
