"""Probes: where on the path policy and reference are compared."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.inversion import Inverter, invert
from diffpref.kernels import noise_and_target
from diffpref.noise import Generators
from diffpref.path import GaussianPath, like, values_of
from diffpref.transition import Ancestral, StepRule
from diffpref.types import Backbone, Cond, Probe

__all__ = ["forward_probe", "inversion_probe", "invert", "transition_probe"]


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

    >>> x0 = torch.ones(1, 2, 4)  # two candidates of one prompt
    >>> forward_probe(policy.path, x0, torch.tensor([0.5]), torch.zeros(1, 1, 4).expand_as(x0)).target.unique()
    tensor([-1.])

    Args:
        x0: images or latents at unit scale, as the network takes them.
        t: one time for each prompt, in the path's own unit.
        eps: standard normal noise.
        cond: named tensors with first axis b.

    Raises:
        ValueError: eps or t does not fit x0.
    """
    if eps.shape != x0.shape:
        raise ValueError(f"eps must have the shape of x0 {tuple(x0.shape)}, got {tuple(eps.shape)}.")
    _check_one_time_a_prompt(x0, t)
    # Noise expanded over the candidates is in memory once: read it once.
    noise = eps[:, :1] if eps.shape[1] > 1 and eps.stride(1) == 0 else eps
    alpha, sigma, a, b = (values(t).to(x0.device) for values in (path.alpha, path.sigma, path.a, path.b))
    x_t, target = noise_and_target(x0, noise, alpha=alpha, sigma=sigma, a=a, b=b)
    return Probe(x_t, target, t, _unit_weight(x0), dict(cond or {}))


def inversion_probe(
    model: Backbone,
    x0: Float[Tensor, "b k *chw"],
    t: Tensor,
    cond: Cond | None = None,
    *,
    steps: int,
    renoise: int = 0,
    average: bool = False,
    eta: float = 0.0,
    generator: Generators = None,
    inverter: Inverter = invert,
) -> Probe:
    """Every candidate inverted to its prompt's t by `model`, compared with the noise that its own inversion implies.

    tau = (x_t - alpha_t x0) / sigma_t takes the place of eps in the target (InPO and SmPO, both Lu et al. 2025).
    The arguments after t are `invert`'s; a list of generators has one for each of the b * k candidates.

    >>> inversion_probe(reference, torch.ones(1, 2, 4), torch.tensor([0.5]), steps=10).x_t.shape
    torch.Size([1, 2, 4])

    Args:
        t: one time for each prompt, in the path's own unit.
        steps: levels from the image up to t, 1 or above.
        renoise: how often each step's noise is estimated again: 0 for InPO, 1 for SmPO.
        average: take the mean of the estimates, as SmPO does.
        eta: noise added after each step, in units of DDIM's posterior deviation.
        inverter: a function with `invert`'s arguments in its place, for instance that of the published scripts
            (`examples/official_inversion.py`), whose last level is not t.

    Raises:
        ValueError: as `invert`, or t is not one for each prompt.
    """
    _check_one_time_a_prompt(x0, t)
    b, k = x0.shape[:2]
    each = {name: value.repeat_interleave(k, 0) for name, value in (cond or {}).items()}
    inverted = inverter(
        model,
        x0.flatten(0, 1),
        t.repeat_interleave(k, 0),
        each,
        steps=steps,
        renoise=renoise,
        average=average,
        eta=eta,
        generator=generator,
    )
    return inverted_probe(model.path, x0, torch.unflatten(inverted, 0, (b, k)), t, cond)


def inverted_probe(
    path: GaussianPath,
    x0: Float[Tensor, "b k *chw"],
    x_t: Float[Tensor, "b k *chw"],
    t: Tensor,
    cond: Cond | None = None,
) -> Probe:
    """The probe of candidates whose inverted latents x_t are known, for instance from a store.

    >>> x0, t = torch.zeros(1, 2, 4), torch.tensor([0.5])
    >>> inverted_probe(reference.path, x0, torch.ones(1, 2, 4), t).target.unique()  # tau = 1 / 0.5, tau - x0
    tensor([2.])

    Args:
        x_t: the inverted latent of each candidate at its prompt's t.
        t: one time for each prompt, in the path's own unit.
    """
    tau = ((x_t - like(path.alpha(t), x0) * x0) / like(path.sigma(t), x0)).to(x_t.dtype)
    return Probe(x_t, path.target(x0, tau, t), t, _unit_weight(x0), dict(cond or {}))


def transition_probe(
    path: GaussianPath,
    x_t: Float[Tensor, "b k *chw"],
    x_s: Float[Tensor, "b k *chw"],
    t: Tensor,
    s: Tensor,
    cond: Cond | None = None,
    *,
    rule: StepRule | None = None,
) -> Probe:
    """A stored step from t to s of each candidate's sampling chain.

    The step is N(keep x_t + gain F, std^2), so the target is the prediction that lands on x_s and the weight is
    (gain / std)^2: the log-ratio of the errors is the mean over elements of log pi_policy - log pi_reference, as in
    D3PO's code (Yang et al. 2024, eq. 14), with no constant left over.

    >>> x_t, x_s = torch.zeros(1, 2, 4), torch.ones(1, 2, 4)
    >>> transition_probe(policy.path, x_t, x_s, torch.tensor([0.8]), torch.tensor([0.4])).weight
    tensor([1.4000])

    Args:
        x_t, x_s: the stored latents of a step, before and after it.
        t: the level of each prompt's step in the path's unit, above the clean end.
        s: the level below it that the step leads to, also above the clean end.
        rule: the sampler that drew x_s; by default `Ancestral()`.

    Raises:
        ValueError: x_s does not fit x_t, levels outside the path or not falling, or a step without noise.
    """
    if x_s.shape != x_t.shape:
        raise ValueError(f"x_s must have the shape of x_t {tuple(x_t.shape)}, got {tuple(x_s.shape)}.")
    _check_one_time_a_prompt(x_t, t)
    _check_one_time_a_prompt(x_t, s)
    path.check_times(t)
    path.check_times(s, "s")
    if not bool((s < t).all()):
        raise ValueError(f"every step must go down, got t {values_of(t)} and s {values_of(s)}.")
    step = (rule or Ancestral())(path, t, s)
    if not bool((step.std > 0).all()):
        raise ValueError("a step without noise has no density: leave it out, or sample with noise (eta above 0).")
    target = ((x_s - like(step.keep, x_t) * x_t) / like(step.gain, x_t)).to(x_s.dtype)
    return Probe(x_t, target, t, (step.gain / step.std).square(), dict(cond or {}))


def _check_one_time_a_prompt(x: Float[Tensor, "b k *chw"], t: Tensor) -> None:
    if t.shape != x.shape[:1]:
        raise ValueError(f"t must hold one time for each of the {x.shape[0]} prompts, got shape {tuple(t.shape)}.")


def _unit_weight(x: Float[Tensor, "b k *chw"]) -> Float[Tensor, " b"]:
    return torch.ones(x.shape[0], device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
