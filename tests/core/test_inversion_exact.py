"""Inversion against oracles, the solved flow of the analytic world, and a sampler written out."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffpref.inversion import invert, levels
from diffpref.path import GaussianPath, edm, rectified_flow, variance_preserving
from diffpref.transition import Ancestral
from diffpref.types import Cond
from tests.core.inversion_world import CHW, DATA, PATHS, Oracle, alpha_sigma, every_form, every_path, fine_table
from tests.core.numbers import normal, number, sdxl_alphas_cumprod


@every_path
@every_form
@pytest.mark.parametrize("steps", [1, 7])
def test_an_oracle_is_inverted_exactly(name: str, form: dict, steps: int) -> None:
    """methods.md 12: sqrt(abar) x0 + sqrt(1 - abar) eps for every t; the test that the published code fails."""
    path, t = PATHS[name]()
    x0, eps = normal(2, len(t), *CHW)
    alpha, sigma = alpha_sigma(name, t)
    x_t = invert(Oracle(name, path, eps), x0, t, steps=steps, **form)
    # x0 is divided out of the noise at sigma down to 2e-3, and eps out of the picture at alpha down to 1e-3.
    torch.testing.assert_close(x_t, alpha * x0 + sigma * eps, rtol=1e-10, atol=1e-10)


@dataclass
class Constant:
    """A network that always answers the same: the noise on a path of noise, the velocity on the straight one."""

    path: GaussianPath
    answer: Tensor

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.answer


times = st.floats(1e-3, 1)
forms = st.fixed_dictionaries({"steps": st.integers(1, 30), "renoise": st.integers(0, 4), "average": st.booleans()})


@given(name=st.sampled_from([*PATHS]), share=st.lists(times, min_size=3, max_size=3), form=forms)
def test_a_constant_answer_is_inverted_exactly(name: str, share: list[float], form: dict) -> None:
    """In any number of steps and estimates, at any t, noise alone among them."""
    path, _ = PATHS[name]()
    form = {**form, "average": form["average"] and form["renoise"] > 0}
    # 0.999 of noise is sigma 999 on the path without an end.
    t = path.at_share(number(*share).clamp(max=0.999 if name == "edm" else 1))
    x0, eps = normal(2, 3, *CHW)
    alpha, sigma = alpha_sigma(name, t)
    expected = alpha * x0 + sigma * eps
    if name in ("eps", "flow"):
        answer = eps if name == "eps" else eps - x0
        torch.testing.assert_close(invert(Constant(path, answer), x0, t, **form), expected, rtol=1e-12, atol=1e-12)
    if name != "flow" or bool((t < 1).all()):  # an oracle there divides by alpha = 0
        x_t = invert(Oracle(name, path, eps), x0, t, **form)
        torch.testing.assert_close(x_t, expected, rtol=1e-9, atol=1e-9)


def test_levels_of_noise_alone_stand_still() -> None:
    """A schedule of terminal SNR 0 ends in noise alone, and with many steps several levels are that end."""
    path, t, x0 = variance_preserving(number(0.9, 0.5, 0.0), "v_prediction"), torch.tensor([2, 1]), normal(2, *CHW)
    many, more = (invert(DATA.denoiser(path), x0, t, steps=steps) for steps in (50, 200))
    assert many.isfinite().all()
    torch.testing.assert_close(many, more, rtol=1e-12, atol=1e-12)  # both climb through the three levels there are


@pytest.mark.parametrize("name", ["eps", "flow"])
def test_one_step_asks_once_about_the_picture_itself(name: str) -> None:
    path, t = PATHS[name]()
    seen: list[Tensor] = []

    class Watched(Oracle):
        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
            seen.append(x_t)
            return super().__call__(x_t, t, cond)

    x0, eps = normal(2, len(t), *CHW)
    invert(Watched(name, path, eps), x0, t, steps=1)
    assert len(seen) == 1 and torch.equal(seen[0], x0)


WORLDS: dict[str, Callable[[], tuple[GaussianPath, Tensor]]] = {
    "flow": lambda: (rectified_flow(), number(0.3, 0.7, 0.9)),
    "edm": lambda: (edm(), number(0.4, 2.0, 9.0)),
    "vp": lambda: (fine_table(), torch.tensor([6_000, 14_000, 18_000])),
}


def orders(path: GaussianPath, t: Tensor, steps: int, form: dict) -> Tensor:
    """log2 of how much the error shrinks when the steps double; for each sample."""
    model, x0 = DATA.denoiser(path), normal(len(t), *CHW, seed=5)
    exact = DATA.flow_map(path, x0, t)
    coarse, fine = ((invert(model, x0, t, steps=n, **form) - exact).flatten(1).norm(dim=1) for n in (steps, 2 * steps))
    return (coarse / fine).log2()


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    ("form", "order"),
    [({}, 1.0), ({"renoise": 4}, 1.0), ({"renoise": 1, "average": True}, 2.0)],
    ids=["ddim", "renoise", "average"],
)
def test_order_of_convergence(world: str, form: dict, order: float) -> None:
    path, t = WORLDS[world]()
    # Measured 0.946 to 1.019, and 1.897 to 2.039; with 32 steps half as far from 1 and 2. The next order is one away.
    measured = orders(path, t, 16, form)
    torch.testing.assert_close(measured, torch.full_like(measured, order), rtol=0, atol=0.15)


def test_order_at_noise_alone() -> None:
    """At t = 1 the clock sigma / alpha of the ODE is infinite: the average's error holds a logarithm of the steps."""
    path, t = rectified_flow(), number(1.0)
    assert orders(path, t, 16, {}).item() == pytest.approx(1, abs=0.1)  # measured 0.947
    assert 1.65 < orders(path, t, 16, {"renoise": 1, "average": True}).item() < 2  # 1.74, with 256 steps 1.87


def test_what_the_1000_levels_of_sd_allow() -> None:
    """Level 0 has sigma 0.03, one jump from the picture: an error of 0.4 sigma^2 that no number of steps mends."""
    path, t, x0 = variance_preserving(sdxl_alphas_cumprod()), torch.tensor([20, 100, 500, 999]), normal(4, *CHW, seed=5)
    exact, model = DATA.flow_map(path, x0, t), DATA.denoiser(path)
    for steps in (40, 160):
        error = (invert(model, x0, t, steps=steps, renoise=1, average=True) - exact).abs().amax((1, 2))
        assert (error[:3] > 1e-4).all() and (error[:3] < 7e-4).all() and error[3] < 4e-3, error


def test_the_average_is_close_with_ten_steps() -> None:
    """How good the paper's ten steps are on SD's own table, in the analytic world."""
    path, t = variance_preserving(sdxl_alphas_cumprod()), torch.tensor([100, 500, 999])
    x0 = normal(3, *CHW)
    exact, model = DATA.flow_map(path, x0, t), DATA.denoiser(path)
    plain = (invert(model, x0, t, steps=10) - exact).abs().amax()
    average = (invert(model, x0, t, steps=10, renoise=1, average=True) - exact).abs().amax()
    assert average < 0.05 and average < plain / 4, (plain, average)  # measured 0.029 and 0.129


def sample_down(name: str, model: Callable, x_t: Tensor, grid: list[Tensor]) -> Tensor:
    """The deterministic sampler (Song et al. 2021, eq. 12) from grid[-1] to the clean end, written out."""
    for index in range(len(grid) - 1, -1, -1):
        alpha, sigma = alpha_sigma(name, grid[index])
        native = model(x_t, grid[index], {})
        x0, eps = {
            "eps": lambda f, x, a, s: ((x - s * f) / a, f),
            "v": lambda f, x, a, s: (a * x - s * f, s * x + a * f),
            "x0": lambda f, x, a, s: (f, (x - a * f) / s),
            "flow": lambda f, x, a, s: (x - s * f, x + a * f),
            "edm": lambda f, x, a, s: (f, (x - f) / s),
        }[name](native, x_t, alpha, sigma)
        if index == 0:
            return x0
        alpha, sigma = alpha_sigma(name, grid[index - 1])
        x_t = alpha * x0 + sigma * eps
    raise AssertionError("an empty grid")


@every_path
def test_the_sampler_undoes_the_fixed_point(name: str) -> None:
    path, t = PATHS[name]()
    # An iteration leaves 1 - alpha_t sigma_s / (alpha_s sigma_t) of its error here: nearly all of it near noise alone,
    # where 120 are not enough.
    t = t.clamp(max={"flow": 0.95, "edm": 20.0}.get(name, 999)).to(t.dtype)
    model, x0 = DATA.denoiser(path), normal(len(t), *CHW, seed=2)
    x_t = invert(model, x0, t, steps=6, renoise=120)
    grid = levels(path, t, 6)
    torch.testing.assert_close(sample_down(name, model, x_t, grid), x0, rtol=0, atol=1e-9)
    # The same, with this package's own sampler.
    x = x_t
    for above, below in zip(grid[:0:-1], grid[-2::-1], strict=True):
        step = Ancestral(eta=0.0)(path, above, below)
        x = step.keep.reshape(-1, 1, 1) * x + step.gain.reshape(-1, 1, 1) * model(x, above, {})
    torch.testing.assert_close(path.to_x0(model(x, grid[0], {}), x, grid[0]), x0, rtol=0, atol=1e-9)
    # DDIM inversion is no fixed point: the check can fail.
    crude = sample_down(name, model, invert(model, x0, t, steps=6), grid)
    assert (crude - x0).abs().amax() > 1e-3
