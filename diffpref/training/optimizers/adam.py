"""The settings that Adam's relatives share (Kingma & Ba 2015)."""

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Lt


@dataclass(frozen=True)
class Adam:
    """Two running averages of each gradient, and a decay of the weights."""

    adam_beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Share of the gradients' running average that each step keeps, in [0, 1)."""
    adam_beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    """The same for the average of their squares."""
    adam_weight_decay: Annotated[float, Ge(0)] = 1e-2
    """Share of the weights that a step takes away, in units of the learning rate."""
    adam_epsilon: Annotated[float, Ge(0)] = 1e-8
    """Added to the root of the squares' average."""

    def arguments(self, rate: float) -> dict[str, Any]:
        """Keyword arguments of torch's AdamW and of all that are called like it."""
        return {
            "lr": rate,
            "betas": (self.adam_beta1, self.adam_beta2),
            "weight_decay": self.adam_weight_decay,
            "eps": self.adam_epsilon,
        }
