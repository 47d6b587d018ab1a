"""Probes: where on the path policy and reference are compared."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.path import GaussianPath
from diffpref.types import Cond, Probe


def forward_probe(
    path: GaussianPath,
    x0: Float[Tensor, "b k *chw"],
    t: Tensor,
    eps: Float[Tensor, "b k *chw"],
    cond: Cond | None = None,
) -> Probe:
    """Every candidate noised forward to its prompt's t, compared in the native prediction at weight 1.

    The candidates of a prompt normally share one eps (`eps[:, :1].expand_as(x0)`), as in the official Diffusion-DPO
    code; the paper's expectation (Wallace et al. 2023, eq. 14) draws it for each, at a higher variance.

    Args:
        t: one time for each prompt, in the path's own unit.
        eps: standard normal noise.
        cond: named tensors with first axis b.

    Raises:
        ValueError: eps or t does not fit x0.
    """
    if eps.shape != x0.shape:
        raise ValueError(f"eps must have the shape of x0 {tuple(x0.shape)}, got {tuple(eps.shape)}.")
    if t.shape != x0.shape[:1]:
        raise ValueError(f"t must hold one time for each of the {x0.shape[0]} prompts, got shape {tuple(t.shape)}.")
    weight = torch.ones(x0.shape[0], device=x0.device, dtype=torch.promote_types(x0.dtype, torch.float32))
    return Probe(x_t=path.noise(x0, eps, t), target=path.target(x0, eps, t), t=t, weight=weight, cond=dict(cond or {}))
