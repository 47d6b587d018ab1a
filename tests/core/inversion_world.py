"""Paths, forms of inversion and networks whose inversion is known."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from diffpref.path import GaussianPath, edm, rectified_flow, variance_preserving
from diffpref.types import Cond
from tests.core.numbers import number, sdxl_alphas_cumprod
from tests.gaussian import GaussianData

CHW = (2, 3)


def table_of(prediction: str) -> Callable[[], tuple[GaussianPath, Tensor]]:
    # Both ends of SD's table, two neighbours, and two between.
    return lambda: (variance_preserving(sdxl_alphas_cumprod(), prediction), torch.tensor([0, 1, 999, 50, 640]))


# A path and a batch of times that reaches from almost clean to almost noise.
PATHS: dict[str, Callable[[], tuple[GaussianPath, Tensor]]] = {
    "eps": table_of("epsilon"),
    "v": table_of("v_prediction"),
    "x0": table_of("sample"),
    "flow": lambda: (rectified_flow(), number(1e-3, 0.02, 0.999, 0.3, 0.7)),
    "edm": lambda: (edm(), number(2e-3, 0.02, 80.0, 0.5, 3.0)),
}
every_path = pytest.mark.parametrize("name", PATHS)
FORMS: dict[str, dict[str, int | bool]] = {
    "ddim": {},
    "average": {"renoise": 1, "average": True},
    "renoise": {"renoise": 3},
    "renoise, average": {"renoise": 3, "average": True},
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def alpha_sigma(name: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """The scales of each sample, written out; "n 1 1"."""
    t = t.reshape(-1, 1, 1)
    if name == "flow":
        return 1 - t, t
    if name == "edm":
        return torch.ones_like(t), t
    kept = sdxl_alphas_cumprod()[t]
    return kept.sqrt(), (1 - kept).sqrt()


@dataclass
class Oracle:
    """A network that finds the noise `eps` in every latent, and says so in the native prediction."""

    name: str
    path: GaussianPath
    eps: Tensor

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        alpha, sigma = alpha_sigma(self.name, t)
        x0 = (x_t - sigma * self.eps) / alpha
        native = {"eps": self.eps, "v": alpha * self.eps - sigma * x0, "x0": x0, "flow": self.eps - x0, "edm": x0}
        return native[self.name]


@dataclass
class Wavy:
    """A network without any symmetry, that counts its calls and remembers their t."""

    path: GaussianPath
    calls: list[Tensor] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.calls.append(t)
        shift = cond["text"].reshape(-1, 1, 1) if "text" in cond else 0.0
        t = t.reshape(-1, 1, 1).to(x_t.dtype)
        return torch.sin(x_t + shift) + 0.1 * torch.cos(t) * x_t.roll(1, -1)


DATA = GaussianData(0.7, 1.3)


def fine_table() -> GaussianPath:
    """20,000 levels, even in the share from 5e-5: the grid of indices is one of shares, and level 0 almost clean."""
    share = torch.linspace(5e-5, 1, 20_000, dtype=torch.float64)
    return variance_preserving((1 - share) ** 2 / ((1 - share) ** 2 + share**2), "v_prediction")


def ddim_std(name: str, t: Tensor, s: Tensor) -> Tensor:
    """sigma_eta=1 from t down to s: methods.md 2.1 on a table, k-diffusion's sigma_up on EDM; "n 1 1".

    The straight path is EDM's at sigma = t / (1 - t), shrunk by 1 - t; so is its noise."""
    if name == "flow":
        t, s = t.reshape(-1, 1, 1), s.reshape(-1, 1, 1)
        return (1 - s) * ddim_std("edm", t / (1 - t), s / (1 - s))
    if name == "edm":
        t, s = t.reshape(-1, 1, 1), s.reshape(-1, 1, 1)
        return s * (t**2 - s**2).sqrt() / t
    above, below = (sdxl_alphas_cumprod()[level].reshape(-1, 1, 1) for level in (t, s))
    return ((1 - below) / (1 - above) * (1 - above / below)).sqrt()


TABLE, FLOW, EDM = variance_preserving(sdxl_alphas_cumprod()), rectified_flow(), edm()
