"""What an inversion refuses, and in which words."""

import math

import pytest
import torch
from torch import Tensor

from diffpref.inversion import invert
from diffpref.path import GaussianPath, variance_preserving
from diffpref.probe import inversion_probe
from examples.official_inversion import invert_as_published
from tests.core.inversion_world import CHW, DATA, EDM, FLOW, TABLE
from tests.core.numbers import normal, number


@pytest.mark.parametrize(
    ("path", "t"),
    [
        (TABLE, torch.tensor([-1])),
        (TABLE, torch.tensor([1000])),
        (variance_preserving(number(1.0, 0.5)), torch.tensor([0])),
        (FLOW, number(0.0)),
        (FLOW, number(-0.1)),
        (FLOW, number(1.01)),
        (FLOW, number(math.nan)),
        (EDM, number(0.0)),
        (EDM, number(-0.5)),
        (EDM, number(math.nan)),
    ],
)
def test_t_lies_on_the_path(path: GaussianPath, t: Tensor) -> None:
    x0 = normal(1, *CHW)
    with pytest.raises(ValueError, match="t must lie above the clean end"):
        invert(DATA.denoiser(path), x0, t, steps=2)
    with pytest.raises(ValueError, match="t must lie above the clean end"):
        inversion_probe(DATA.denoiser(path), x0[:, None], t, steps=2)


def test_one_t_off_the_path_is_enough() -> None:
    with pytest.raises(ValueError, match="t must lie above the clean end"):
        invert(DATA.denoiser(TABLE), normal(3, *CHW), torch.tensor([5, 1000, 7]), steps=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be 1 or above, got 0"),
        ({"steps": -2}, "steps must be 1 or above, got -2"),
        ({"renoise": -1}, "renoise must be 0 or above, and 1 or above with average, got -1"),
        ({"average": True}, "renoise must be 0 or above, and 1 or above with average, got 0"),
        ({"eta": -0.1}, "eta must be 0 or above, got -0.1"),
        ({"eta": math.nan}, "eta must be 0 or above, got nan"),
        ({"eta": 0.1, "generator": [torch.Generator()]}, "one for each of the 2 samples, got 1"),
        ({"eta": 0.1, "generator": [torch.Generator()] * 3}, "one for each of the 2 samples, got 3"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        invert(DATA.denoiser(FLOW), normal(2, *CHW), number(0.3, 0.6), **{"steps": 2, **arguments})
    with pytest.raises(ValueError, match=message):
        invert_as_published(
            DATA.denoiser(TABLE), normal(2, *CHW), torch.tensor([300, 600]), **{"steps": 2, **arguments}
        )


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1)])
def test_one_t_for_each_sample(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="t must hold one time for each of the 2 samples"):
        invert(DATA.denoiser(FLOW), normal(2, *CHW), torch.full(shape, 0.5), steps=2)
    with pytest.raises(ValueError, match="t must hold one time for each of the 2 prompts"):
        inversion_probe(DATA.denoiser(FLOW), normal(2, 3, *CHW), torch.full(shape, 0.5), steps=2)
