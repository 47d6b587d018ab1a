"""Classifier-free guidance as a wrapper: a guided backbone is a backbone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.backbones.prompts import MASK, concatenate
from diffpref.path import GaussianPath
from diffpref.transfer import moved
from diffpref.types import Backbone, Cond


@dataclass(frozen=True)
class Guided:
    """empty + scale (prompted - empty), both from one call of twice the batch (Ho & Salimans 2022, eq. 6)."""

    model: Backbone
    scale: float
    empty: Cond

    @property
    def path(self) -> GaussianPath:
        return self.model.path

    def __call__(self, x_t: Float[Tensor, " n *chw"], t: Tensor, cond: Cond) -> Float[Tensor, " n *chw"]:
        both = concatenate([self._blank(cond, len(x_t)), cond])
        found = self.model(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        # The scale makes the rounding of a difference in half precision larger.
        empty, prompted = found.to(torch.promote_types(found.dtype, torch.float32)).chunk(2)
        return empty + self.scale * (prompted - empty)

    def _blank(self, cond: Cond, count: int) -> dict[str, Tensor]:
        """The empty prompt for each row; what has no empty form, such as picture sizes, is the same for both."""
        blank = {name: given for name, given in cond.items() if name.removesuffix(MASK) not in self.empty}
        for name, value in self.empty.items():
            if (prompt := cond.get(name.removesuffix(MASK))) is not None:
                there = moved(value, prompt.device)
                there = there if value.dtype == torch.bool else there.to(prompt)
                blank[name] = there.expand(count, *value.shape[1:])
        return blank


def guided(model: Backbone, scale: float, empty: Cond) -> Backbone:
    """The model under classifier-free guidance, with gradients through both halves; scale 1 is the model itself.

    Guidance is affine in the prediction and x_t is shared, so it means the same in every native prediction.

    Args:
        empty: the unconditional prompt's tensors, first axis 1.
    """
    return model if scale == 1 else Guided(model, scale, empty)
