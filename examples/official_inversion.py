"""The inversion of the published InPO and SmPO scripts, whose last level is not t: for comparison with them only.

In a config: `inverter: examples/official_inversion.py:invert_as_published`; in code: `inversion_probe(...,
inverter=invert_as_published)`. The scripts take alpha_t and sigma_t at the drawn t but end their climb elsewhere, so
that the target holds part of the picture: at t = 50 and 10 steps, tau = 1.36 eps - 0.14 x0 where eps is meant.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.inversion import check_inversion
from diffpref.noise import Generators, draw, posterior_std
from diffpref.path import like
from diffpref.types import Backbone, Cond

LEVELS = 1000
"""The time indices of Stable Diffusion's schedule, from which the scripts' grid is made."""


@torch.no_grad()
def invert_as_published(
    model: Backbone,
    x0: Float[Tensor, " n *chw"],
    t: Tensor,
    cond: Cond | None = None,
    *,
    steps: int,
    renoise: int = 0,
    average: bool = False,
    eta: float = 0.0,
    generator: Generators = None,
) -> Float[Tensor, " n *chw"]:
    """x_t as the scripts find it under the diffusers 0.20 that they pin, except that every sample has its own t.

    Each step climbs 1000 / `steps` indices, from a level that the scripts call -99 (for 10 steps) up to the first one
    not below t, so it ends up to 99 indices too noisy, and for t above 901 too clean. The network is told the source's
    index in every call, -99 too; the scales there are those of index 0. The arguments are those of
    `diffpref.inversion.invert`.

    Raises:
        ValueError: as `invert`, a path without 1000 indices, or more than 1000 steps.
    """
    check_inversion(model.path, x0, t, steps=steps, renoise=renoise, average=average, eta=eta)
    path, stride = model.path, LEVELS // steps
    if path.last != LEVELS - 1:
        raise ValueError(f"invert_as_published is for paths of {LEVELS} indices; this one's last is {path.last}.")
    if stride < 1:
        raise ValueError(f"invert_as_published takes at most {LEVELS} steps, got {steps}.")
    x = x0
    for source in range(1 - stride, 1 - stride + steps * stride, stride):
        here, there = (torch.full_like(t, min(max(index, 0), LEVELS - 1)) for index in (source, source + stride))
        ratio = like(path.alpha(there), x) / like(path.alpha(here), x)
        gain = like(path.sigma(there), x) - ratio * like(path.sigma(here), x)
        label, climbed, estimates = torch.full_like(t, source), x, []
        for _ in range(renoise + 1):
            estimates.append(path.to_eps(model(climbed, label, cond or {}), climbed, here))
            eps = torch.stack(estimates).mean(0) if average and len(estimates) > renoise else estimates[-1]
            climbed = (ratio * x + gain * eps).to(x.dtype)
        if eta:
            climbed = climbed + like(eta * posterior_std(path, there, here), x).to(x.dtype) * draw(x, generator)
        x = torch.where((source < t).reshape(-1, *[1] * (x.ndim - 1)), climbed, x)
    return x
