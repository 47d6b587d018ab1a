"""Steps of samplers as the papers print them."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from diffpref.path import GaussianPath, edm, rectified_flow, variance_preserving
from diffpref.transition import Ancestral, FlowSDE, StepRule
from diffpref.types import Cond
from tests.core.numbers import number, sdxl_alphas_cumprod
from tests.gaussian import GaussianData

CHW = (2, 3)
DATA = GaussianData(0.7, 1.3)
assert_near = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


def table_of(prediction: str) -> Callable[[], tuple[GaussianPath, Tensor, Tensor]]:
    return lambda: (
        variance_preserving(sdxl_alphas_cumprod(), prediction),
        torch.tensor([999, 500, 51]),
        torch.tensor([949, 100, 1]),
    )


# A path, levels t of each prompt, and those below, s.
STEPS: dict[str, Callable[[], tuple[GaussianPath, Tensor, Tensor]]] = {
    "eps": table_of("epsilon"),
    "v": table_of("v_prediction"),
    "x0": table_of("sample"),
    # At t = 1 Ancestral's sqrt(sigma_s^2 - std^2) is the root of a rounding: 1e-8.
    "flow": lambda: (rectified_flow(), number(0.98, 0.6, 0.1), number(0.95, 0.3, 0.02)),
    "sde": lambda: (rectified_flow(), number(1.0, 0.6, 0.1), number(0.95, 0.3, 0.02)),
    "edm": lambda: (edm(), number(80.0, 2.0, 0.1), number(60.0, 1.0, 0.002)),
}
RULES: list[tuple[str, StepRule]] = [(name, Ancestral(eta)) for name in STEPS if name != "sde" for eta in (0.5, 1.0)]
RULES += [("sde", FlowSDE()), ("sde", FlowSDE(1.1))]
every_rule = pytest.mark.parametrize(("name", "rule"), RULES)


def wide(t: Tensor) -> Tensor:
    return t.reshape(-1, 1, 1)


def estimates(name: str, output: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x0 and eps that a native output implies, written out for each convention."""
    if name in ("flow", "sde"):
        return x - wide(t) * output, x + (1 - wide(t)) * output
    if name == "edm":
        return output, (x - output) / wide(t)
    kept = wide(sdxl_alphas_cumprod()[t])
    if name == "eps":
        return (x - (1 - kept).sqrt() * output) / kept.sqrt(), output
    if name == "v":
        return kept.sqrt() * x - (1 - kept).sqrt() * output, kept.sqrt() * output + (1 - kept).sqrt() * x
    return output, (x - kept.sqrt() * output) / (1 - kept).sqrt()


def published(name: str, rule: StepRule, output: Tensor, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the step, as the papers print them."""
    x0, eps = estimates(name, output, x, t)
    if isinstance(rule, FlowSDE):  # methods.md 2.6, Flow-GRPO's sd3_sde_with_logprob
        sigma, dt, v = wide(t), wide(s - t), output
        std = rule.noise * (sigma / (1 - torch.where(sigma == 1, wide(s), sigma))).sqrt()
        mean = x * (1 + std**2 / (2 * sigma) * dt) + v * (1 + std**2 * (1 - sigma) / (2 * sigma)) * dt
        return mean, std * (-1 * dt).sqrt()
    assert isinstance(rule, Ancestral)
    if name == "edm":  # k-diffusion's get_ancestral_step and sample_euler_ancestral
        above, below = wide(t), wide(s)
        up = torch.minimum(below, rule.eta * (below**2 * (above**2 - below**2) / above**2).sqrt())
        down = (below**2 - up**2).sqrt()
        return x + (x - x0) / above * (down - above), up
    if name == "flow":  # DDIM in the clock of VP: x / (alpha^2 + sigma^2)^(1/2), kept = alpha^2 / (alpha^2 + sigma^2)
        norms = [((1 - wide(level)) ** 2 + wide(level) ** 2).sqrt() for level in (t, s)]
        kept_t, kept_s = ((1 - wide(level)) ** 2 / norm**2 for level, norm in zip((t, s), norms, strict=True))
        scale = norms[1]
    else:
        kept_t, kept_s, scale = wide(sdxl_alphas_cumprod()[t]), wide(sdxl_alphas_cumprod()[s]), 1.0
    # methods.md 2.1; Song et al. 2021, eq. 12 and 16
    std = rule.eta * ((1 - kept_s) / (1 - kept_t) * (1 - kept_t / kept_s)).sqrt()
    return scale * (kept_s.sqrt() * x0 + (1 - kept_s - std**2).sqrt() * eps), scale * std


class Wavy:
    """A network without any symmetry."""

    def __init__(self, path: GaussianPath, tilt: float = 0.2) -> None:
        self.path, self.tilt, self.graphs = path, tilt, []

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.graphs.append(torch.is_grad_enabled())
        shift = cond["text"].reshape(-1, 1, 1) if "text" in cond else 0.0
        return torch.sin(x_t + shift) + self.tilt * torch.cos(t.to(x_t.dtype)).reshape(-1, 1, 1) * x_t.roll(1, -1)


FLOW, TABLE = rectified_flow(), variance_preserving(sdxl_alphas_cumprod())
