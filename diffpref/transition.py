"""Steps of a stochastic sampler as Gaussians: from level t, x_s ~ N(keep x_t + gain F, std^2), F the network's output.

Every sampler here has a mean that is affine in the network's native prediction, so the log-density of a stored step is
a weighted squared error against the prediction that would land on it: what `transition_probe` makes of it.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.noise import Generators, draw, posterior_std
from diffpref.path import GaussianPath, like, values_of
from diffpref.types import Backbone, Cond


@dataclass(frozen=True)
class Step:
    """The Gaussian step of each sample, from t to s: mean keep x_t + gain F, standard deviation std; " n" each.

    >>> Step(keep=torch.ones(1), gain=torch.zeros(1), std=torch.full((1,), 0.5)).std
    tensor([0.5000])
    """

    keep: Tensor
    gain: Tensor
    std: Tensor


@runtime_checkable
class StepRule(Protocol):
    """A sampler: the step from t to s on a path."""

    def __call__(self, path: GaussianPath, t: Tensor, s: Tensor) -> Step: ...


def _combine(path: GaussianPath, t: Tensor, of_x0: Tensor, of_eps: Tensor) -> tuple[Tensor, Tensor]:
    """keep and gain of the mean of_x0 * x0 + of_eps * eps, with both estimated from x_t and the prediction."""
    alpha, sigma, a, b = path.alpha(t), path.sigma(t), path.a(t), path.b(t)
    d = alpha * b - sigma * a
    return (b * of_x0 - a * of_eps) / d, (alpha * of_eps - sigma * of_x0) / d


@dataclass(frozen=True)
class Ancestral:
    """DDIM with noise (Song et al. 2021, eq. 12 and 16); at eta 1 DDPM's posterior, and EDM's ancestral step.

    x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z, std = eta times the posterior's.

    >>> Ancestral(eta=0.5)(model.path, torch.tensor([0.8]), torch.tensor([0.4])).std
    tensor([0.1972])
    """

    eta: float = 1.0
    """Noise of each step, in units of DDPM's posterior deviation; 0 is DDIM."""

    def __call__(self, path: GaussianPath, t: Tensor, s: Tensor) -> Step:
        std = self.eta * posterior_std(path, t, s)
        keep, gain = _combine(path, t, path.alpha(s), (path.sigma(s).square() - std.square()).clamp(min=0).sqrt())
        return Step(keep, gain, std)


@dataclass(frozen=True)
class FlowSDE:
    """The reverse SDE of a straight path by Euler and Maruyama (Flow-GRPO, Liu et al. 2025, eq. 9 and 12).

    With v = eps - x0, dt = s - t < 0 and g = noise sqrt(t / (1 - t)), where s stands for t in the 1 - t of the first
    step from t = 1:  mean = x (1 + g^2 dt / (2 t)) + v (1 + g^2 (1 - t) / (2 t)) dt,  std = g sqrt(-dt).

    >>> FlowSDE()(model.path, torch.tensor([0.5]), torch.tensor([0.25])).std
    tensor([0.3500])
    """

    noise: float = 0.7
    """Noise of the SDE, in units of sqrt(t / (1 - t)); Flow-GRPO uses 0.7."""

    def __call__(self, path: GaussianPath, t: Tensor, s: Tensor) -> Step:
        # An index is no time, even where alpha is 0 or 1.
        straight = torch.allclose(path.alpha(t) + path.sigma(t), torch.ones_like(path.sigma(t)))
        if not (t.is_floating_point() and straight):
            raise ValueError("FlowSDE is for the straight path alpha + sigma = 1: use Ancestral() on this one.")
        dt = s - t
        g = self.noise * (t / (1 - torch.where(t < 1, t, s))).sqrt()
        of_x, of_v = 1 + g.square() / (2 * t) * dt, (1 + g.square() * (1 - t) / (2 * t)) * dt
        keep, gain = _combine(path, t, -of_v, of_v)
        return Step(of_x + keep, gain, g * (-dt).sqrt())


@dataclass(frozen=True)
class Chain:
    """A sampled chain of each sample: latents[j] at times[j], and the log-density of each step under the sampler.

    log_density[j] belongs to the step from times[j] to times[j + 1]: nats, mean over elements (as D3PO's code).

    >>> chain = sample_chain(model, torch.zeros(1, 4), torch.tensor([0.8, 0.4, 0.2]))
    >>> chain.latents.shape, chain.log_density.shape
    (torch.Size([3, 1, 4]), torch.Size([2, 1]))
    """

    latents: Float[Tensor, "s n *chw"]
    times: Tensor
    log_density: Float[Tensor, "s_1 n"]


def log_density(
    step: Step, prediction: Float[Tensor, " n *chw"], x_t: Float[Tensor, " n *chw"], x_s: Float[Tensor, " n *chw"]
) -> Float[Tensor, " n"]:
    """log N(x_s; keep x_t + gain prediction, std^2) in nats, mean over elements, float32 or better.

    >>> one = torch.ones(1)
    >>> log_density(Step(one, 0 * one, one), torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(1, 4))  # -log(2 pi) / 2
    tensor([-0.9189])
    """
    mean = like(step.keep, x_t) * x_t + like(step.gain, x_t) * prediction
    std = like(step.std, x_t)
    density = -((x_s - mean) / std).square() / 2 - std.log() - math.log(2 * math.pi) / 2
    return density.flatten(1).mean(1)


@torch.no_grad()
def sample_chain(
    model: Backbone,
    x: Float[Tensor, " n *chw"],
    times: Float[Tensor, " s"] | Tensor,
    cond: Cond | None = None,
    *,
    rule: StepRule | None = None,
    generator: Generators = None,
) -> Chain:
    """A chain from the noised latents x at times[0] down to times[-1], each step drawn from `rule`.

    >>> sample_chain(model, torch.zeros(2, 4), torch.tensor([0.8, 0.4]), rule=Ancestral(eta=1.0)).times
    tensor([0.8000, 0.4000])

    Args:
        x: noised latents at times[0], scale included.
        times: in the path's own unit, falling levels above the path's clean end, at least two, shared by the samples.
        rule: the sampler; by default `Ancestral()`.
        generator: one for the batch, or one for each sample.

    Raises:
        ValueError: times that do not fall, or lie outside the path.
    """
    rule, path = rule or Ancestral(), model.path
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()):
        raise ValueError(f"times must be two or more falling levels, got {values_of(times)}.")
    path.check_times(times, "times")
    latents: list[Tensor] = [x]
    densities: list[Tensor] = []
    for here, there in zip(times[:-1], times[1:], strict=True):
        t, s = here.expand(len(x)), there.expand(len(x))
        step, prediction = rule(path, t, s), model(x, t, cond or {})
        following = like(step.keep, x) * x + like(step.gain, x) * prediction + like(step.std, x) * draw(x, generator)
        following = following.to(x.dtype)
        densities.append(log_density(step, prediction, x, following))
        latents.append(following)
        x = following
    return Chain(torch.stack(latents), times, torch.stack(densities))


def finish(model: Backbone, chain: Chain, cond: Cond | None = None) -> Float[Tensor, " n *chw"]:
    """The clean latents that a chain ends in: the denoiser's estimate at its last level, without noise.

    >>> finish(model, sample_chain(model, torch.zeros(2, 4), torch.tensor([0.8, 0.4]))).shape
    torch.Size([2, 4])
    """
    x, t = chain.latents[-1], chain.times[-1].expand(chain.latents.shape[1])
    with torch.no_grad():
        return model.path.to_x0(model(x, t, cond or {}), x, t)
