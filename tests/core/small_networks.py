"""A probe and networks that remember what they were asked."""

import torch
from torch import Tensor

from diffpref.path import GaussianPath, rectified_flow
from diffpref.probe import forward_probe
from diffpref.types import Cond, Probe

B, K, CHW = 3, 2, (4, 5, 6)
T = torch.tensor([0.2, 0.5, 0.9])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_probe(path: GaussianPath | None = None, cond: Cond | None = None) -> Probe:
    return forward_probe(path or rectified_flow(), normal(B, K, *CHW), T, normal(B, K, *CHW, seed=1), cond)
