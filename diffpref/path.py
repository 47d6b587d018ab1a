"""Gaussian paths: x_t = alpha(t) x0 + sigma(t) eps, on which a network predicts a(t) x0 + b(t) eps.

Every parameterization is four scalar functions of t; every conversion between them is one 2x2 solve. Times enter as a
tensor with one entry for each sample, and come back shaped to broadcast over that sample's elements.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.transfer import on_each_device

Schedule: TypeAlias = Callable[[Tensor], Tensor]
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def values_of(t: Tensor) -> list[float]:
    """The numbers of a tensor of times, for messages; whole ones stay whole.

    >>> values_of(torch.tensor([900, 300]))
    [900, 300]
    """
    whole = not t.is_floating_point()
    return [int(value) if whole else float(value) for value in t.flatten()]


def like(coefficient: Tensor, x: Tensor) -> Tensor:
    """The coefficient of each sample, broadcast over the trailing axes of x, in at least x's precision.

    >>> like(torch.tensor([1.0, 2.0]), torch.ones(2, 4, 8, 8)).shape
    torch.Size([2, 1, 1, 1])
    """
    shaped = coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))
    return shaped.to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class GaussianPath:
    """Four functions of t. `t` has the leading axes of the samples: "b" for x "b k *chw", "n" for x " n *chw".

    `at_share` is the way back: the t at which the noise's share sigma / (alpha + sigma), in [0, 1), is the given one
    (the nearest index on a path of indices). The share is t itself on the straight path, so grids that are even in it
    are alike on all paths. `last` is the largest t. `clean` is the t of the clean end where it is a level like the
    others: the network may be asked there, and its answer be turned into the noise. None where it may not: a table of
    indices starts above the image, and a denoiser's answer about an image without noise says nothing of the noise.

    >>> path, t = rectified_flow(), torch.tensor([0.25])
    >>> path.noise(torch.tensor([2.0]), torch.tensor([-1.0]), t), path.snr(t)
    (tensor([1.2500]), tensor([9.]))
    """

    alpha: Schedule
    sigma: Schedule
    a: Schedule
    b: Schedule
    at_share: Schedule
    last: float
    clean: float | None

    def _mix(self, first: Tensor, second: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
        dtype = torch.promote_types(first.dtype, second.dtype)
        return (like(by[0], first) * first + like(by[1], second) * second).to(dtype)

    def noise(self, x0: Float[Tensor, "*shape"], eps: Float[Tensor, "*shape"], t: Tensor) -> Float[Tensor, "*shape"]:
        """x_t = alpha x0 + sigma eps."""
        return self._mix(x0, eps, (self.alpha(t), self.sigma(t)))

    def target(self, x0: Float[Tensor, "*shape"], eps: Float[Tensor, "*shape"], t: Tensor) -> Float[Tensor, "*shape"]:
        """What the network should predict: a x0 + b eps."""
        return self._mix(x0, eps, (self.a(t), self.b(t)))

    def _determinant(self, t: Tensor) -> Tensor:
        return self.alpha(t) * self.b(t) - self.sigma(t) * self.a(t)

    def to_x0(
        self, prediction: Float[Tensor, "*shape"], x_t: Float[Tensor, "*shape"], t: Tensor
    ) -> Float[Tensor, "*shape"]:
        """The image that prediction and x_t imply: (b x_t - sigma prediction) / (alpha b - sigma a)."""
        d = self._determinant(t)
        return self._mix(x_t, prediction, (self.b(t) / d, -self.sigma(t) / d))

    def to_eps(
        self, prediction: Float[Tensor, "*shape"], x_t: Float[Tensor, "*shape"], t: Tensor
    ) -> Float[Tensor, "*shape"]:
        """The noise that prediction and x_t imply: (alpha prediction - a x_t) / (alpha b - sigma a)."""
        d = self._determinant(t)
        return self._mix(x_t, prediction, (-self.a(t) / d, self.alpha(t) / d))

    def share(self, t: Tensor) -> Tensor:
        """The noise's share sigma / (alpha + sigma), in [0, 1]: 0 is a clean image, 1 is noise alone."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        return sigma / (alpha + sigma)

    def check_times(self, t: Tensor, name: str = "t") -> None:
        """Raise ValueError where a t is outside the path: at its clean end or below, beyond its last level, or nan."""
        inside = (t >= 0) & (t <= self.last)
        if not bool(inside.all()) or not bool((self.sigma(t) > 0).all()):
            raise ValueError(f"{name} must lie above the clean end and not above {self.last:g}, got {values_of(t)}.")

    def snr(self, t: Tensor) -> Tensor:
        """The signal-to-noise ratio alpha^2 / sigma^2."""
        return (self.alpha(t) / self.sigma(t)) ** 2

    def eps_weight(self, t: Tensor) -> Tensor:
        """The factor that turns a squared error of the native prediction into one of eps: (alpha / determinant)^2.

        1 for eps, alpha^2 for v, SNR for x0, (1 - t)^2 for rectified flow, 1 / sigma^2 for EDM. The continuous-time
        bound on log p(x0) is half the integral of the eps-error over -d log SNR (Kingma et al. 2021, eq. 15)."""
        return (self.alpha(t) / self._determinant(t)) ** 2


def variance_preserving(alphas_cumprod: Float[Tensor, " steps"], prediction: str = "epsilon") -> GaussianPath:
    """The DDPM path: alpha = sqrt(alphas_cumprod[t]), sigma = sqrt(1 - alphas_cumprod[t]); t is an integer index.

    >>> path = variance_preserving(torch.tensor([0.99, 0.64]), prediction="v_prediction")
    >>> path.target(torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([1]))  # v = 0.8 * -1 - 0.6 * 2
    tensor([-2.])

    Args:
        alphas_cumprod: the cumulative product of 1 - beta_t, one number in [0, 1] for each index.
        prediction: "epsilon", "v_prediction" (v = alpha eps - sigma x0, Salimans & Ho 2022, app. D) or "sample" (x0).

    Raises:
        ValueError: an unknown prediction, or alphas_cumprod outside [0, 1].
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {PREDICTIONS}, got {prediction!r}.")
    # Half precision is wrong by 8 % in 1 / sqrt(1 - alphas_cumprod) at the clean end.
    table = torch.as_tensor(alphas_cumprod, dtype=torch.promote_types(alphas_cumprod.dtype, torch.float32))
    if table.ndim != 1 or not bool(((table >= 0) & (table <= 1)).all()):
        raise ValueError("alphas_cumprod must be one row of numbers in [0, 1]: the cumulative product of 1 - beta_t.")
    roots, complements = table.sqrt(), (1 - table).sqrt()

    def at(values: Tensor) -> Schedule:
        there = on_each_device(values)

        def lookup(t: Tensor) -> Tensor:
            if t.dtype not in (torch.int32, torch.int64):
                raise ValueError(f"t of a variance-preserving path is an integer index, got {t.dtype}.")
            return there(t.device)[t]

        return lookup

    shares, order = (complements / (roots + complements)).sort()
    shares_on, order_on = on_each_device(shares), on_each_device(order)

    def at_share(share: Tensor) -> Tensor:
        sorted_shares = shares_on(share.device)
        above = torch.searchsorted(sorted_shares, share.to(shares.dtype).contiguous()).clamp(1, max(len(shares) - 1, 1))
        above = above.clamp(max=len(shares) - 1)
        below = (above - 1).clamp(min=0)
        nearer_below = share - sorted_shares[below] < sorted_shares[above] - share
        return order_on(share.device)[torch.where(nearer_below, below, above)]

    alpha, sigma = at(roots), at(complements)
    zero, one = at(torch.zeros_like(table)), at(torch.ones_like(table))
    a, b = {"epsilon": (zero, one), "v_prediction": (at(-complements), alpha), "sample": (one, zero)}[prediction]
    return GaussianPath(alpha, sigma, a, b, at_share, last=len(table) - 1, clean=None)


def rectified_flow() -> GaussianPath:
    """The straight path of SD3: x_t = (1 - t) x0 + t eps, velocity eps - x0; t in (0, 1), data at 0.

    Source: Liu et al. 2022; Esser et al. 2024, eq. 13.

    >>> rectified_flow().target(torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([0.25]))
    tensor([-3.])
    """

    def wide(t: Tensor) -> Tensor:
        # 1 - t in bfloat16 is 1 for every t below 0.002.
        return t.to(torch.promote_types(t.dtype, torch.float32))

    return GaussianPath(
        alpha=lambda t: 1 - wide(t),
        sigma=wide,
        a=lambda t: -torch.ones_like(wide(t)),
        b=lambda t: torch.ones_like(wide(t)),
        at_share=wide,
        last=1.0,
        clean=0.0,
    )


def edm(sigma_data: float = 0.5) -> GaussianPath:
    """The EDM path: x = x0 + sigma eps, the network is the denoiser D(x; sigma); t is sigma itself, above 0.

    Source: Karras et al. 2022.

    >>> edm().noise(torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([0.5]))
    tensor([1.5000])

    Args:
        sigma_data: the standard deviation of the data, above 0; the preconditioned network uses it, not the path.

    Raises:
        ValueError: sigma_data is not above 0.
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be above 0, got {sigma_data}.")
    return GaussianPath(
        alpha=torch.ones_like,
        sigma=lambda t: t,
        a=torch.ones_like,
        b=torch.zeros_like,
        at_share=lambda share: share / (1 - share),
        last=math.inf,
        clean=None,
    )
