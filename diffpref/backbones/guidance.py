"""Classifier-free guidance as a wrapper: a guided backbone is a backbone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.path import GaussianPath
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
        both = {}
        for name, given in cond.items():
            # What has no empty form, such as picture sizes, is the same for both.
            blank = self.empty[name].to(given).expand_as(given) if name in self.empty else given
            both[name] = torch.cat([blank, given])
        found = self.model(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        # The scale makes the rounding of a difference in half precision larger.
        empty, prompted = found.to(torch.promote_types(found.dtype, torch.float32)).chunk(2)
        return empty + self.scale * (prompted - empty)


def guided(model: Backbone, scale: float, empty: Cond) -> Backbone:
    """The model under classifier-free guidance, with gradients through both halves; scale 1 is the model itself.

    Guidance is affine in the prediction and x_t is shared, so it means the same in every native prediction.

    Args:
        empty: the unconditional prompt's tensors, first axis 1.
    """
    return model if scale == 1 else Guided(model, scale, empty)
