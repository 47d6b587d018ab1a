"""Five conventions of a path, each worked out by hand."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from diffpref.path import GaussianPath, edm, rectified_flow, variance_preserving
from tests.core.numbers import number
from tests.gaussian import PATHS_AT


def vp(prediction: str) -> tuple[GaussianPath, Tensor]:
    """alpha = 0.8 and sigma = 0.6 at t = 1; the neighbours would give something else."""
    return variance_preserving(number(0.99, 0.64, 0.25), prediction), torch.tensor([1])


@dataclass(frozen=True)
class Convention:
    """Every number here was worked out on paper from x0 = 2, eps = -1, and from x_t = 1.5, prediction = 0.5."""

    path: Callable[[], tuple[GaussianPath, Tensor]]
    x_t: float
    target: float
    snr: float
    eps_weight: float
    implied_x0: float
    implied_eps: float


CONVENTIONS = {
    # x_t = .8 * 2 - .6 = 1;  x0^ = (1.5 - .6 * .5) / .8;  eps^ = .5
    "eps": Convention(lambda: vp("epsilon"), 1.0, -1.0, 16 / 9, 1.0, 1.5, 0.5),
    # v = .8 * -1 - .6 * 2 = -2;  x0^ = .8 * 1.5 - .6 * .5;  eps^ = .8 * .5 + .6 * 1.5
    "v": Convention(lambda: vp("v_prediction"), 1.0, -2.0, 16 / 9, 0.64, 0.9, 1.3),
    # eps^ = (1.5 - .8 * .5) / .6
    "x0": Convention(lambda: vp("sample"), 1.0, 2.0, 16 / 9, 16 / 9, 0.5, 11 / 6),
    # t = 1/4: x_t = .75 * 2 - .25;  velocity eps - x0 = -3;  x0^ = 1.5 - .25 * .5;  eps^ = 1.5 + .75 * .5
    "flow": Convention(lambda: (rectified_flow(), number(0.25)), 1.25, -3.0, 9.0, 0.5625, 1.375, 1.875),
    # sigma = 1/2: x_t = 2 - .5;  the network predicts x0;  eps^ = (1.5 - .5) / .5
    "edm": Convention(lambda: (edm(), number(0.5)), 1.5, 2.0, 4.0, 4.0, 0.5, 2.0),
}
every_convention = pytest.mark.parametrize("convention", CONVENTIONS.values(), ids=CONVENTIONS.keys())
every_path = pytest.mark.parametrize("name", PATHS_AT)
