"""Numbers that the core's tests share."""

from functools import partial

import torch
from torch import Tensor

# Rounding of a handful of float64 operations on numbers of order one.
assert_exact = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


def number(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sdxl_alphas_cumprod() -> Tensor:
    """SDXL's "scaled_linear" schedule in float64: beta is the square of a straight line (Rombach et al. 2022)."""
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
