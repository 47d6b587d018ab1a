"""Paths against numbers worked out by hand, against diffusers, and against themselves."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffpref.path import edm, variance_preserving
from tests.core.conventions import CONVENTIONS, Convention, every_convention, every_path
from tests.core.numbers import assert_exact, number, sdxl_alphas_cumprod
from tests.gaussian import PATHS_AT


@every_convention
def test_fixed_numbers(convention: Convention) -> None:
    path, t = convention.path()
    x0, eps, x_t, prediction = (number(value) for value in (2.0, -1.0, 1.5, 0.5))
    for got, expected in [
        (path.noise(x0, eps, t), convention.x_t),
        (path.target(x0, eps, t), convention.target),
        (path.snr(t), convention.snr),
        (path.eps_weight(t), convention.eps_weight),
        (path.to_x0(prediction, x_t, t), convention.implied_x0),
        (path.to_eps(prediction, x_t, t), convention.implied_eps),
    ]:
        assert_exact(got, number(expected))


def test_the_analytic_world_uses_the_same_five_conventions() -> None:
    assert CONVENTIONS.keys() == PATHS_AT.keys()


@every_path
def test_round_trip(name: str) -> None:
    path, t = PATHS_AT[name](torch.linspace(-8, 8, 9, dtype=torch.float64))
    x0, eps = torch.randn(2, 9, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_t, target = path.noise(x0, eps, t), path.target(x0, eps, t)
    # alpha or sigma of 1/55 at log SNR -+8 divides the rounding.
    torch.testing.assert_close(path.to_x0(target, x_t, t), x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(path.to_eps(target, x_t, t), eps, rtol=0, atol=1e-12)


@every_path
def test_log_snr_of_the_grid(name: str) -> None:
    log_snr = torch.linspace(-8, 8, 9, dtype=torch.float64)
    path, t = PATHS_AT[name](log_snr)
    assert_exact(path.snr(t), log_snr.exp())


# Squared error of eps and of x0 for a unit squared error of the native prediction (methods.md 0.2; Salimans & Ho 2022).
CONVERSIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "eps": lambda snr: (torch.ones_like(snr), 1 / snr),
    "v": lambda snr: (snr / (1 + snr), 1 / (1 + snr)),
    "x0": lambda snr: (snr, torch.ones_like(snr)),
    "flow": lambda snr: ((snr.sqrt() / (1 + snr.sqrt())) ** 2, 1 / (1 + snr.sqrt()) ** 2),
    "edm": lambda snr: (snr, torch.ones_like(snr)),
}


@every_path
def test_a_wrong_prediction_is_wrong_by_the_known_factor(name: str) -> None:
    log_snr = torch.linspace(-4, 4, 9, dtype=torch.float64)
    path, t = PATHS_AT[name](log_snr)
    x0, eps, wrong = torch.randn(3, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x_t, prediction = path.noise(x0, eps, t), path.target(x0, eps, t) + wrong
    of_eps, of_x0 = CONVERSIONS[name](log_snr.exp()[:, None])
    torch.testing.assert_close((path.to_eps(prediction, x_t, t) - eps) ** 2, of_eps * wrong**2, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close((path.to_x0(prediction, x_t, t) - x0) ** 2, of_x0 * wrong**2, rtol=1e-10, atol=1e-12)
    assert_exact(path.eps_weight(t)[:, None], of_eps)


@every_path
def test_each_sample_has_its_own_t(name: str) -> None:
    path, t = PATHS_AT[name](torch.tensor([-3.0, 0.5, 2.0], dtype=torch.float64))
    x0, eps = torch.randn(2, 3, 2, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    methods = (path.noise, path.target, path.to_x0, path.to_eps)
    for method in methods:
        grouped = method(x0, eps, t)
        flat = method(x0.flatten(0, 1), eps.flatten(0, 1), t.repeat_interleave(2))
        alone = torch.stack([method(x0[i], eps[i], t[i].expand(2)) for i in range(3)])
        assert grouped.shape == x0.shape
        assert torch.equal(grouped, flat.unflatten(0, (3, 2)))
        assert torch.equal(grouped, alone)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_agrees_with_diffusers_on_the_sdxl_schedule(prediction: str) -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    path, t = variance_preserving(scheduler.alphas_cumprod, prediction), torch.tensor([0, 1, 499, 999])
    x0, eps = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    targets = {"epsilon": eps, "v_prediction": scheduler.get_velocity(x0, eps, t), "sample": x0}
    # Both work in float32 from the same table.
    torch.testing.assert_close(path.noise(x0, eps, t), scheduler.add_noise(x0, eps, t), rtol=0, atol=1e-6)
    torch.testing.assert_close(path.target(x0, eps, t), targets[prediction], rtol=0, atol=1e-6)
    # diffusers builds its float32 table by 1,000 products.
    torch.testing.assert_close(path.alpha(t).double() ** 2, sdxl_alphas_cumprod()[t], rtol=1e-4, atol=0)


def test_zero_terminal_snr_is_defined_for_v() -> None:
    # At alpha = 0, v = -x0: the noise alone says nothing and the network says it all (Lin et al. 2024).
    path, t = variance_preserving(number(0.9, 0.0), "v_prediction"), torch.tensor([1])
    prediction, x_t = number(0.3), number(7.0)
    assert path.to_x0(prediction, x_t, t).item() == -0.3
    assert path.to_eps(prediction, x_t, t).item() == 7.0
    assert path.snr(t).item() == path.eps_weight(t).item() == 0.0


@pytest.mark.parametrize("table", [(0.5, 1.1), (-0.1,), (float("nan"),)])
def test_vp_rejects_what_is_no_schedule(table: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"numbers in \[0, 1\]"):
        variance_preserving(number(*table))


def test_vp_names_the_predictions() -> None:
    with pytest.raises(ValueError, match=r"'epsilon', 'v_prediction', 'sample'.*got 'eps'"):
        variance_preserving(number(0.5), "eps")


@pytest.mark.parametrize("sigma_data", [0.0, -0.5, float("nan")])
def test_edm_rejects_a_width_of_nothing(sigma_data: float) -> None:
    with pytest.raises(ValueError, match="sigma_data must be above 0"):
        edm(sigma_data)
