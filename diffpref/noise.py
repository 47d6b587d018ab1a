"""Standard normal noise, and how much of it a stochastic sampler adds from one level to the next."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from diffpref.path import GaussianPath

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""Where noise comes from: one generator for the batch, one for each sample, or the global one."""


def draw(x: Tensor, generator: Generators) -> Tensor:
    """Standard normal noise like x, drawn on each generator's own device."""
    if isinstance(generator, Sequence):
        if len(generator) != len(x):
            raise ValueError(f"give one generator, or one for each of the {len(x)} samples, got {len(generator)}.")
        each = [torch.randn(x.shape[1:], generator=g, device=g.device, dtype=x.dtype) for g in generator]
        return torch.stack(each).to(x.device)
    where = generator.device if generator is not None else x.device
    return torch.randn(x.shape, generator=generator, device=where, dtype=x.dtype).to(x.device)


def posterior_std(path: GaussianPath, t: Tensor, s: Tensor) -> Tensor:
    """The standard deviation of DDIM's step from t down to s at eta 1 (Song et al. 2021, eq. 16), each sample's own."""
    sigma_t, sigma_s, ratio = path.sigma(t), path.sigma(s), path.alpha(t) / path.alpha(s)
    return sigma_s / sigma_t * (sigma_t.square() - (ratio * sigma_s).square()).clamp(min=0).sqrt()
