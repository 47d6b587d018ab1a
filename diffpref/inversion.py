"""Inversion: from a picture up to the noised latent that leads to it, by DDIM inversion or ReNoise, on any path.

The deterministic sampler carries x_s at level s down to x_p = (alpha_p / alpha_s) (x_s - sigma_s eps) + sigma_p eps,
eps = eps(x_s, s). Inversion climbs from p to s, where eps is asked for at the latent that is sought. So it is
estimated: at the latent below (DDIM inversion), or again and again at the last estimate of the one above (ReNoise).
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.path import GaussianPath, like
from diffpref.types import Backbone, Cond

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""Where noise comes from: one generator for the batch, one for each sample, or the global one."""
OFFICIAL_LEVELS = 1000


@torch.no_grad()
def invert(
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
    official_compat: bool = False,
) -> Float[Tensor, " n *chw"]:
    """x_t of every picture at its own t; the first level is the picture itself (alpha 1, sigma 0), the last exactly t.

    All samples climb together, each on its own grid of `steps` levels, even in sigma / (alpha + sigma), so a batch
    costs steps * (renoise + 1) network calls whatever its times are.

    - DDIM inversion (Song et al. 2021; in InPO, Lu et al. 2025): renoise 0; first order in 1 / steps.
    - ReNoise (Garibi et al. 2024): renoise K estimates eps anew K times at the destination; at its fixed point the
      sampler undoes the step exactly.
    - SmPO (Lu et al. 2025): renoise 1 with average, the mean of the estimates at both ends of the step. It is second
      order because the first estimate carries its own level's t; the published code gives both the source's t.

    Args:
        t: one time for each sample, in the path's own unit.
        average: take the mean of all renoise + 1 estimates instead of the last one.
        eta: adds eta times the standard deviation of DDIM's posterior after each step; InPO's code uses 0.1.
        generator: for eta: one for the batch, or one for each sample, so that its noise does not depend on the batch.
        official_compat: the grid of the published InPO and SmPO scripts, for comparison only: steps of 1000 / `steps`
            indices from a level that is called -99 (for 10 steps) up to the first one not below t, the source's label
            for every call. It ends up to 99 indices too noisy, and above 901 too clean (see `inversion_probe`).

    Raises:
        ValueError: a t outside the path or not one for each sample, steps below 1, renoise or eta below 0, average
            without renoise, generators that do not fit, or official_compat on a path without indices.
    """
    path, cond = model.path, cond or {}
    if t.shape != x0.shape[:1]:
        raise ValueError(f"t must hold one time for each of the {len(x0)} samples, got shape {tuple(t.shape)}.")
    path.check_times(t)
    if steps < 1:
        raise ValueError(f"steps must be 1 or above, got {steps}.")
    if renoise < int(average):
        raise ValueError(f"renoise must be 0 or above, and 1 or above with average, got {renoise}.")
    if not eta >= 0:
        raise ValueError(f"eta must be 0 or above, got {eta}.")
    if official_compat:
        return _official(model, x0, t, cond, steps, renoise, average, eta, generator)
    x, here = x0, None
    for there in levels(path, t, steps):
        # The latent below is asked at its own level; the clean end has none, so the destination's stands in.
        first = there if here is None else here
        x = _climb(model, x, cond, scales(path, here, x), scales(path, there, x), (first, there), renoise, average)
        if eta and here is not None:
            x = x + like(eta * posterior_std(path, there, here), x).to(x.dtype) * draw(x, generator)
        here = there
    return x


def levels(path: GaussianPath, t: Tensor, steps: int) -> list[Tensor]:
    """The levels that each sample climbs to, " n" each, even in sigma / (alpha + sigma); the last is t itself.

    On a path of indices a small t has fewer levels below it than steps; then some steps stand still."""
    share = path.share(t)
    inner = [path.at_share(share * (step / steps)).to(t.dtype) for step in range(1, steps)]
    return [*(torch.minimum(level, t) for level in inner), t]


def scales(path: GaussianPath, t: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at t, shaped to broadcast over x; None is the clean end."""
    if t is None:
        one = torch.ones((), device=x.device)
        return one, torch.zeros_like(one)
    return like(path.alpha(t), x), like(path.sigma(t), x)


def posterior_std(path: GaussianPath, t: Tensor, s: Tensor) -> Tensor:
    """The standard deviation of DDIM's step from t down to s at eta 1 (Song et al. 2021, eq. 16), each sample's own."""
    sigma_t, sigma_s, ratio = path.sigma(t), path.sigma(s), path.alpha(t) / path.alpha(s)
    return sigma_s / sigma_t * (sigma_t.square() - (ratio * sigma_s).square()).clamp(min=0).sqrt()


def draw(x: Tensor, generator: Generators) -> Tensor:
    """Standard normal noise like x, drawn on each generator's own device."""
    if isinstance(generator, Sequence):
        if len(generator) != len(x):
            raise ValueError(f"give one generator, or one for each of the {len(x)} samples, got {len(generator)}.")
        each = [torch.randn(x.shape[1:], generator=g, device=g.device, dtype=x.dtype) for g in generator]
        return torch.stack(each).to(x.device)
    where = generator.device if generator is not None else x.device
    return torch.randn(x.shape, generator=generator, device=where, dtype=x.dtype).to(x.device)


def _climb(
    model: Backbone,
    x: Float[Tensor, " n *chw"],
    cond: Cond,
    here: tuple[Tensor, Tensor],
    there: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor],
    renoise: int,
    average: bool,
) -> Float[Tensor, " n *chw"]:
    """One step up; here and there are (alpha, sigma), labels the t of the first estimate and of the others."""
    (alpha_here, sigma_here), (alpha, sigma) = here, there
    ratio = alpha / alpha_here

    def above(eps: Tensor) -> Tensor:
        return (ratio * x + (sigma - ratio * sigma_here) * eps).to(x.dtype)

    def estimate(latent: Tensor, label: Tensor) -> Tensor:
        # The published scripts ask the network at -99, a level that no table has.
        return model.path.to_eps(model(latent, label, cond), latent, label.clamp(min=0))

    estimates = [estimate(x, labels[0])]
    for _ in range(renoise):
        estimates.append(estimate(above(estimates[-1]), labels[1]))
    return above(torch.stack(estimates).mean(0) if average else estimates[-1])


def _official(
    model: Backbone,
    x0: Float[Tensor, " n *chw"],
    t: Tensor,
    cond: Cond,
    steps: int,
    renoise: int,
    average: bool,
    eta: float,
    generator: Generators,
) -> Float[Tensor, " n *chw"]:
    """The published scripts' loop under the diffusers 0.20 that they pin, except that every sample has its own t."""
    path, stride = model.path, OFFICIAL_LEVELS // steps
    if path.last != OFFICIAL_LEVELS - 1:
        raise ValueError(
            f"official_compat reproduces scripts for paths of 1000 indices; this one's last is {path.last}."
        )
    if stride < 1:
        raise ValueError(f"official_compat takes at most {OFFICIAL_LEVELS} steps, got {steps}.")
    x = x0
    for source in range(1 - stride, 1 - stride + steps * stride, stride):
        here, there = (torch.full_like(t, min(max(level, 0), int(path.last))) for level in (source, source + stride))
        label = torch.full_like(t, source)
        labels = (label, label)
        climbed = _climb(model, x, cond, scales(path, here, x), scales(path, there, x), labels, renoise, average)
        if eta:
            climbed = climbed + like(eta * posterior_std(path, there, here), x).to(x.dtype) * draw(x, generator)
        x = torch.where((source < t).reshape(-1, *[1] * (x.ndim - 1)), climbed, x)
    return x
