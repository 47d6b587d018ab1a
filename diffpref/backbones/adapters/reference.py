"""The reference: the policy with its adapters off, or a frozen copy. The loop cannot tell which."""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.path import GaussianPath
from diffpref.types import Backbone, Cond


@dataclass(frozen=True)
class AdapterOff:
    """A backbone whose network runs without its adapters: no second copy of the weights."""

    model: Backbone
    network: torch.nn.Module

    @property
    def path(self) -> GaussianPath:
        return self.model.path

    def __call__(self, x_t: Float[Tensor, " n *chw"], t: Tensor, cond: Cond) -> Float[Tensor, " n *chw"]:
        self.network.disable_adapters()  # type: ignore[operator]
        try:
            return self.model(x_t, t, cond)
        finally:
            self.network.enable_adapters()  # type: ignore[operator]


def frozen_copy(network: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A copy that no optimizer moves, in evaluation mode; `dtype` is autocast's, where it is not the network's own.

    Only the weights that autocast casts are kept in it: with the norms' in float32 the copy predicts what the network
    does, to the last bit."""
    copied = copy.deepcopy(network).requires_grad_(False).eval()
    for module in copied.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.to(dtype)
    return copied
