"""The reference: the policy with its adapters off, or a frozen copy. The loop cannot tell which."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.path import GaussianPath
from diffpref.types import Backbone, Cond

OFF = "_disable_adapters"
"""What peft's layers answer as `disable_adapters`."""


@dataclass(frozen=True)
class AdapterOff:
    """A backbone whose network runs without its adapters: no second copy of the weights."""

    model: Backbone
    network: torch.nn.Module

    @property
    def path(self) -> GaussianPath:
        return self.model.path

    @cached_property
    def switches(self) -> tuple[dict[str, Any], ...]:
        """Where each layer keeps whether its adapter is off; listed once, at the first forward.

        peft's own switch walks over all modules and sets requires_grad of every matrix, off and on: 50 ms of the host
        for SDXL's 560 layers, and the floor of a pair is 55. An adapter that is off has no part in the graph as it
        is."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        return tuple(vars(module) for module in self.network.modules() if isinstance(module, BaseTunerLayer))

    def __call__(self, x_t: Float[Tensor, " n *chw"], t: Tensor, cond: Cond) -> Float[Tensor, " n *chw"]:
        for switch in self.switches:
            switch[OFF] = True
        try:
            return self.model(x_t, t, cond)
        finally:
            for switch in self.switches:
                switch[OFF] = False


def frozen_copy(network: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A copy that no optimizer moves; `dtype` is autocast's, where it is not the network's own.

    It predicts what the network does, to the last bit: only the weights that autocast casts are kept in `dtype`, so the
    norms' stay in float32. So does the layer of the first parameter, whose type diffusers takes for the network's, and
    casts times and classes to it before their sum."""
    copied = copy.deepcopy(network).requires_grad_(False)
    first = next(copied.parameters())
    for module in copied.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and module.weight is not first:
            module.to(dtype)
    return copied
