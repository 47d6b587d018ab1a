"""The analytic world: data x0 ~ N(mean, std^2) in every element, where each quantity of the package is a formula.

On x_t = alpha x0 + sigma eps the marginal is N(alpha mean, V) with V = alpha^2 std^2 + sigma^2, hence
    E[x0 | x_t]  = mean + alpha std^2 / V (x_t - alpha mean)        the optimal denoiser
    E[eps | x_t] = sigma / V (x_t - alpha mean)
    x_t = alpha mean + sqrt(V) / std (x0 - mean)                    the probability-flow ODE from data to t, solved
Elements are independent, so densities are given for each element: errors are means over elements, and so is
`density.mean()`. Times have the leading axes of x, as everywhere in the package.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpref.path import GaussianPath, edm, rectified_flow, variance_preserving
from diffpref.types import Cond


def _over(coefficient: Tensor, x: Tensor) -> Tensor:
    """One coefficient for each sample, broadcast over the trailing axes of x."""
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


@dataclass(frozen=True)
class GaussianData:
    """x0 ~ N(mean, std^2); floats, or tensors that broadcast over the elements of one sample."""

    mean: float | Tensor
    std: float | Tensor

    def log_density(self, x: Tensor) -> Tensor:
        """log N(x; mean, std^2) of each element, in nats."""
        z = (x - self.mean) / self.std
        return -0.5 * z**2 - torch.log(torch.as_tensor(self.std, dtype=x.dtype)) - 0.5 * math.log(2 * math.pi)

    def log_ratio(self, other: "GaussianData", x: Tensor) -> Tensor:
        """log p(x) - log p_other(x) of each element, in nats."""
        return self.log_density(x) - other.log_density(x)

    def marginal(self, path: GaussianPath, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_t, shaped to broadcast over x."""
        alpha, sigma = _over(path.alpha(t), x), _over(path.sigma(t), x)
        return alpha * self.mean, (alpha**2 * self.std**2 + sigma**2).sqrt()

    def flow_map(self, path: GaussianPath, x0: Tensor, t: Tensor) -> Tensor:
        """Where the probability-flow ODE carries x0 by time t."""
        mean, std = self.marginal(path, x0, t)
        return mean + std / self.std * (x0 - self.mean)

    def flow_inverse(self, path: GaussianPath, x_t: Tensor, t: Tensor) -> Tensor:
        """The x0 from which the probability-flow ODE reaches x_t: what a perfect sampler returns."""
        mean, std = self.marginal(path, x_t, t)
        return self.mean + self.std / std * (x_t - mean)

    def denoiser(self, path: GaussianPath) -> "GaussianDenoiser":
        """The network that has learned this data exactly."""
        return GaussianDenoiser(self, path)


@dataclass(frozen=True)
class GaussianDenoiser:
    """A Backbone: the native prediction a E[x0 | x_t] + b E[eps | x_t]."""

    data: GaussianData
    path: GaussianPath

    def posterior(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """E[x0 | x_t] and E[eps | x_t]."""
        mean, std = self.data.marginal(self.path, x_t, t)
        z = (x_t - mean) / std**2
        x0 = self.data.mean + _over(self.path.alpha(t), x_t) * self.data.std**2 * z
        return x0, _over(self.path.sigma(t), x_t) * z

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        x0, eps = self.posterior(x_t, t)
        return _over(self.path.a(t), x_t) * x0 + _over(self.path.b(t), x_t) * eps


def _variance_preserving_at(prediction: str) -> Callable[[Tensor], tuple[GaussianPath, Tensor]]:
    # alpha^2 = sigmoid(log SNR) on a variance-preserving path, so the grid itself is the schedule and t its index.
    return lambda log_snr: (variance_preserving(log_snr.sigmoid(), prediction), torch.arange(len(log_snr)))


PATHS_AT: dict[str, Callable[[Tensor], tuple[GaussianPath, Tensor]]] = {
    "eps": _variance_preserving_at("epsilon"),
    "v": _variance_preserving_at("v_prediction"),
    "x0": _variance_preserving_at("sample"),
    "flow": lambda log_snr: (rectified_flow(), (-log_snr / 2).sigmoid()),
    "edm": lambda log_snr: (edm(), (-log_snr / 2).exp()),
}
"""Each parameterization: from log SNRs "s" to a path and the times "s" at which it has them."""
