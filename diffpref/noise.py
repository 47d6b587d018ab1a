"""Standard normal noise, and how much of it a stochastic sampler adds from one level to the next."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from diffpref.path import GaussianPath

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""Where noise comes from: one generator for the batch, one for each sample, or the global one."""


def draw(x: Tensor, generator: Generators) -> Tensor:
    """Standard normal noise like x, drawn on each generator's own device.

    >>> draw(torch.zeros(2, 3), [torch.Generator().manual_seed(seed) for seed in (0, 1)]).shape
    torch.Size([2, 3])

    Args:
        x: gives shape, precision and device.
        generator: one for the batch, one for each sample of x, or None for the global one.

    Raises:
        ValueError: a list of generators of another length than x.
    """
    if isinstance(generator, Sequence):
        if len(generator) != len(x):
            raise ValueError(f"give one generator, or one for each of the {len(x)} samples, got {len(generator)}.")
        each = [torch.randn(x.shape[1:], generator=g, device=g.device, dtype=x.dtype) for g in generator]
        return torch.stack(each).to(x.device)
    where = generator.device if generator is not None else x.device
    return torch.randn(x.shape, generator=generator, device=where, dtype=x.dtype).to(x.device)


def posterior_std(path: GaussianPath, t: Tensor, s: Tensor) -> Tensor:
    """The standard deviation of DDIM's step from t down to s at eta 1 (Song et al. 2021, eq. 16), each sample's own.

    >>> from diffpref.path import edm
    >>> posterior_std(edm(), t=torch.tensor([2.0]), s=torch.tensor([1.0]))
    tensor([0.8660])

    Args:
        t, s: the level of each sample and the one below it, in the path's own unit.
    """
    sigma_t, sigma_s, ratio = path.sigma(t), path.sigma(s), path.alpha(t) / path.alpha(s)
    return sigma_s / sigma_t * (sigma_t.square() - (ratio * sigma_s).square()).clamp(min=0).sqrt()
