"""Inversion: from an image up to the noised latent that leads to it, by DDIM inversion or ReNoise, on any path.

The deterministic sampler carries x_s at level s down to x_p = (alpha_p / alpha_s) (x_s - sigma_s eps) + sigma_p eps,
eps = eps(x_s, s). Inversion climbs from p to s, where eps is asked for at the latent that is sought. So it is
estimated: at the latent below (DDIM inversion), or again and again at the last estimate of the one above (ReNoise).
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.noise import Generators, draw, posterior_std
from diffpref.path import GaussianPath, like
from diffpref.types import Backbone, Cond


@runtime_checkable
class Inverter(Protocol):
    """What takes `invert`'s place in `inversion_probe`: x_t of every image at its own t."""

    def __call__(
        self,
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
    ) -> Float[Tensor, " n *chw"]: ...


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
) -> Float[Tensor, " n *chw"]:
    """x_t of every image at its own t; the climb starts at the image itself (alpha 1, sigma 0) and ends exactly at t.

    All samples climb together, each on its own grid of `steps` levels, even in sigma / (alpha + sigma), so a batch
    costs steps * (renoise + 1) network calls whatever its times are. A network that answers with the same noise at
    every level is inverted exactly, and so is one on the straight path that answers with the same velocity.

    - DDIM inversion (Song et al. 2021; in InPO, Lu et al. 2025): renoise 0; first order in 1 / steps.
    - ReNoise (Garibi et al. 2024): renoise K estimates eps again K times at the destination; at its fixed point the
      sampler undoes the step exactly.
    - SmPO (Lu et al. 2025): renoise 1 with average, the mean of the estimates at both ends of the step. It is second
      order because the first estimate carries its own level's t; the published code gives both the source's t.

    >>> invert(model, torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, 0.8]), steps=10).shape
    torch.Size([2, 1])

    Args:
        t: one time for each sample, in the path's own unit.
        steps: levels from the image up to t, 1 or above; the published runs use 10.
        renoise: how often each step's noise is estimated again, 0 or above.
        average: take the mean of all renoise + 1 estimates instead of the last one.
        eta: adds eta times the standard deviation of DDIM's posterior after each step; InPO's code uses 0.1.
        generator: for eta: one for the batch, or one for each sample, so that its noise does not depend on the batch.

    Raises:
        ValueError: as `check_inversion`, or generators that do not fit.
    """
    check_inversion(model.path, x0, t, steps=steps, renoise=renoise, average=average, eta=eta)
    path, x = model.path, x0
    here = None if path.clean is None else torch.full_like(t, path.clean)
    for step, there in enumerate(levels(path, t, steps)):
        x = _climb(model, x, cond or {}, here, there, renoise, average)
        if eta and here is not None and step > 0:
            x = x + like(eta * posterior_std(path, there, here), x).to(x.dtype) * draw(x, generator)
        here = there
    return x


def check_inversion(
    path: GaussianPath, x0: Float[Tensor, " n *chw"], t: Tensor, *, steps: int, renoise: int, average: bool, eta: float
) -> None:
    """Raise ValueError where `invert` cannot start.

    >>> check_inversion(model.path, torch.ones(1, 1), torch.ones(1), steps=0, renoise=0, average=False, eta=0.0)
    Traceback (most recent call last):
    ValueError: steps must be 1 or above, got 0.

    That is: a t outside the path or not one for each sample, steps below 1, renoise or eta below 0, or average without
    renoise."""
    if t.shape != x0.shape[:1]:
        raise ValueError(f"t must hold one time for each of the {len(x0)} samples, got shape {tuple(t.shape)}.")
    path.check_times(t)
    if steps < 1:
        raise ValueError(f"steps must be 1 or above, got {steps}.")
    if renoise < int(average):
        raise ValueError(f"renoise must be 0 or above, and 1 or above with average, got {renoise}.")
    if not eta >= 0:
        raise ValueError(f"eta must be 0 or above, got {eta}.")


def levels(path: GaussianPath, t: Tensor, steps: int) -> list[Tensor]:
    """The levels that each sample climbs to, " n" each, even in sigma / (alpha + sigma); the last is t itself.

    On a path of indices a small t has fewer levels below it than steps; then some steps stand still.

    >>> levels(model.path, torch.tensor([0.8]), steps=2)
    [tensor([0.4000]), tensor([0.8000])]

    Args:
        t: one time for each sample, in the path's own unit.
        steps: how many levels, 1 or above.
    """
    share = path.share(t)
    inner = [path.at_share(share * (step / steps)).to(t.dtype) for step in range(1, steps)]
    return [*(torch.minimum(level, t) for level in inner), t]


def _scales(path: GaussianPath, t: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at t, shaped to broadcast over x; None is a clean end that is no level."""
    if t is None:
        one = torch.ones((), device=x.device)
        return one, torch.zeros_like(one)
    return like(path.alpha(t), x), like(path.sigma(t), x)


def _climb(
    model: Backbone,
    x: Float[Tensor, " n *chw"],
    cond: Cond,
    here: Tensor | None,
    there: Tensor,
    renoise: int,
    average: bool,
) -> Float[Tensor, " n *chw"]:
    """One step up from the level `here` to `there`, each sample's own; None is a clean end that is no level."""
    (alpha_here, sigma_here), (alpha, sigma) = _scales(model.path, here, x), _scales(model.path, there, x)
    # At noise alone both may be 0: levels that round to one stand still.
    ratio = torch.where(alpha == alpha_here, torch.ones_like(alpha), alpha / alpha_here)

    def above(eps: Tensor) -> Tensor:
        return (ratio * x + (sigma - ratio * sigma_here) * eps).to(x.dtype)

    def estimate(latent: Tensor, t: Tensor) -> Tensor:
        return model.path.to_eps(model(latent, t, cond), latent, t)

    # The latent below is asked, and its answer converted, at its own level. Where the clean end is none (a table, EDM),
    # the destination's stands in for both.
    estimates = [estimate(x, there if here is None else here)]
    for _ in range(renoise):
        estimates.append(estimate(above(estimates[-1]), there))
    return above(torch.stack(estimates).mean(0) if average else estimates[-1])
