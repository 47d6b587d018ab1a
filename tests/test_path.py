"""Paths against numbers worked out by hand, against diffusers, and against themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from diffpref.path import GaussianPath, edm, rectified_flow, variance_preserving
from tests.gaussian import PATHS_AT, GaussianData

# Rounding of a handful of float64 operations on numbers of order one.
assert_exact = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


def number(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


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


@every_path
def test_float64_stays_float64(name: str) -> None:
    path, t = PATHS_AT[name](torch.zeros(1, dtype=torch.float64))
    x = torch.ones(1, 3, dtype=torch.float64)
    assert {method(x, x, t).dtype for method in (path.noise, path.target, path.to_x0, path.to_eps)} == {torch.float64}
    assert path.eps_weight(t).dtype == path.snr(t).dtype == torch.float64


def sdxl_alphas_cumprod() -> Tensor:
    """SDXL's "scaled_linear" schedule in float64: beta is the square of a straight line (Rombach et al. 2022)."""
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)


def test_coefficients_go_where_the_pictures_are() -> None:
    # The meta device stands for an accelerator: mixing it with the CPU is an error there too.
    path, x = variance_preserving(number(0.9, 0.5)), torch.ones(2, 3, device="meta")
    for device in ("cpu", "meta"):
        t = torch.tensor([0, 1], device=device)
        assert path.alpha(t).device.type == device
        assert {method(x, x, t).device.type for method in (path.noise, path.to_x0, path.to_eps)} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_schedule(dtype: torch.dtype) -> None:
    # 1 - alphas_cumprod[0] = 0.00085; in float16 it would be 0.00098 and sigma 7 % too large.
    path = variance_preserving(sdxl_alphas_cumprod().float())
    zero, one, t = torch.zeros(1, 1, dtype=dtype), torch.ones(1, 1, dtype=dtype), torch.tensor([0])
    for got, exact in [
        (path.noise(zero, one, t), 0.00085**0.5),
        (path.to_x0(one, zero, t), -((0.00085 / 0.99915) ** 0.5)),
        (path.to_eps(one, zero, t), 1.0),
    ]:
        assert got.dtype == dtype
        # One rounding, that of the result.
        torch.testing.assert_close(got.double(), number(exact)[None], rtol=torch.finfo(dtype).eps, atol=0)


def test_half_precision_rounds_once() -> None:
    path, t = variance_preserving(sdxl_alphas_cumprod().float()), torch.tensor([500, 20])
    x0, eps = torch.randn(2, 2, 100, generator=torch.Generator().manual_seed(3)).bfloat16()
    assert torch.equal(path.noise(x0, eps, t), path.noise(x0.float(), eps.float(), t).bfloat16())


def test_a_mixed_pair_takes_the_wider_type() -> None:
    path, t = variance_preserving(sdxl_alphas_cumprod().float()), torch.tensor([500])
    half, single = torch.ones(1, 2, dtype=torch.float16), torch.ones(1, 2)
    assert path.to_x0(half, single, t).dtype == path.to_x0(single, half, t).dtype == torch.float32


def test_a_half_precision_schedule_is_read_in_float32() -> None:
    table = sdxl_alphas_cumprod()[[999]].half()
    path, t = variance_preserving(table), torch.tensor([0])
    assert path.alpha(t).dtype == torch.float32
    torch.testing.assert_close(path.alpha(t).double() ** 2, table.double(), rtol=1e-6, atol=0)


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


def test_the_ends_of_the_flow() -> None:
    path, (x0, eps) = rectified_flow(), number(3.0, 5.0).split(1)
    assert path.noise(x0, eps, number(0.0)).item() == 3.0
    assert path.noise(x0, eps, number(1.0)).item() == 5.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_vp_times_are_indices(dtype: torch.dtype) -> None:
    path = variance_preserving(number(0.9, 0.5))
    with pytest.raises(ValueError, match="integer index, got " + str(dtype)):
        path.alpha(torch.tensor([1.0], dtype=dtype))
    with pytest.raises(ValueError, match="integer index"):
        path.noise(torch.ones(1, 1), torch.ones(1, 1), torch.tensor([0.5]))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_vp_looks_up_each_index(dtype: torch.dtype) -> None:
    path = variance_preserving(number(1.0, 0.64, 0.0))
    t = torch.tensor([2, 0, 1, 1], dtype=dtype)
    assert_exact(path.alpha(t), number(0.0, 1.0, 0.8, 0.8))
    assert_exact(path.sigma(t), number(1.0, 0.0, 0.6, 0.6))
    with pytest.raises(IndexError):
        path.alpha(torch.tensor([3]))


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


# --- shares of noise, and times


@every_convention
def test_fixed_shares(convention: Convention) -> None:
    path, t = convention.path()
    # sigma / (alpha + sigma): .6 / 1.4 on the tables, t itself on the straight path, (1/2) / (3/2) on EDM
    sigma, alpha = {"VP": (0.6, 0.8), "flow": (0.25, 0.75), "edm": (0.5, 1.0)}[
        "VP" if not t.is_floating_point() else "flow" if t.item() == 0.25 else "edm"
    ]
    assert_exact(path.share(t), number(sigma / (alpha + sigma)))
    assert_exact(path.at_share(path.share(t)), t)


@every_path
def test_share_and_back(name: str) -> None:
    log_snr = torch.linspace(12, -12, 25, dtype=torch.float64)
    path, t = PATHS_AT[name](log_snr)
    share = path.share(t)
    # SNR = ((1 - share) / share)^2
    torch.testing.assert_close(share, (-log_snr / 2).sigmoid(), rtol=1e-12, atol=1e-12)
    assert ((share > 0) & (share < 1)).all() and (share.diff() > 0).all()
    torch.testing.assert_close(path.at_share(share), t, rtol=1e-9, atol=0)  # share / (1 - share) near 1 on EDM
    assert path.at_share(share).shape == t.shape and share.dtype == torch.float64


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]], ids=["falls", "rises", "mixed"])
def test_the_nearest_index_of_a_share(order: list[int]) -> None:
    shares = number(0.05, 0.2, 0.5, 0.6, 1.0)[order]
    path = variance_preserving((1 - shares) ** 2 / ((1 - shares) ** 2 + shares**2))
    wanted = number(0.0, 0.05, 0.12, 0.13, 0.2, 0.34, 0.36, 0.54, 0.56, 0.79, 0.81, 1.0)
    nearest = path.at_share(wanted)
    assert nearest.dtype == torch.int64
    assert shares[nearest].tolist() == [0.05, 0.05, 0.05, 0.2, 0.2, 0.2, 0.5, 0.5, 0.6, 0.6, 1.0, 1.0]
    for value, index in zip(wanted, nearest, strict=True):  # by hand, and by looking at all of them
        assert index == (shares - value).abs().argmin()
    assert torch.equal(path.at_share(wanted.reshape(3, 4)), nearest.reshape(3, 4))
    assert torch.equal(path.at_share(wanted.float()), nearest)


def test_the_nearest_index_of_one_level() -> None:
    assert variance_preserving(number(0.5)).at_share(number(0.0, 0.4, 1.0)).tolist() == [0, 0, 0]


def test_shares_reach_their_ends() -> None:
    path = variance_preserving(number(1.0, 0.64, 0.0), "v_prediction")
    assert path.share(torch.tensor([0, 2])).tolist() == [0.0, 1.0]
    assert rectified_flow().share(number(0.0, 1.0)).tolist() == [0.0, 1.0]


def test_a_half_precision_share_is_read_in_float32() -> None:
    t = torch.tensor([0.001], dtype=torch.bfloat16)
    assert rectified_flow().share(t).dtype == rectified_flow().at_share(t).dtype == torch.float32


def test_last_is_the_largest_t() -> None:
    assert variance_preserving(sdxl_alphas_cumprod()).last == 999
    assert (rectified_flow().last, edm().last) == (1.0, float("inf"))


@pytest.mark.parametrize(
    ("path", "good", "bad"),
    [
        (variance_preserving(number(0.9, 0.5, 0.1)), torch.tensor([0, 1, 2]), [-1, 3, -3]),
        (variance_preserving(number(1.0, 0.5)), torch.tensor([1]), [0, 2]),  # level 0 is the picture itself
        (rectified_flow(), number(1e-6, 0.5, 1.0), [0.0, -0.1, 1.0 + 1e-9, float("nan")]),
        (edm(), number(1e-6, 80.0, 1e6), [0.0, -1.0, float("nan")]),
    ],
)
def test_times_lie_above_the_clean_end(path: GaussianPath, good: Tensor, bad: list[float]) -> None:
    path.check_times(good)
    for value in bad:
        wrong = torch.cat([good, torch.tensor([value], dtype=good.dtype)])
        with pytest.raises(ValueError, match=f"moment must lie above the clean end and not above {path.last:g}, got"):
            path.check_times(wrong, "moment")


def test_times_are_called_t_by_default() -> None:
    with pytest.raises(ValueError, match=r"^t must lie above the clean end and not above 1, got \[2.0\]"):
        rectified_flow().check_times(number(2.0))


@every_path
def test_the_flow_map_follows_the_optimal_denoiser(name: str) -> None:
    """d(x / alpha) / d(sigma / alpha) = E[eps | x_t] on every path: the probability-flow ODE in its simplest clock."""
    data, x0 = GaussianData(0.7, 1.3), torch.tensor([[-1.0, 0.2, 2.5]], dtype=torch.float64)
    for log_snr in (-2.0, 0.0, 3.0):
        path, t = PATHS_AT[name](torch.tensor([log_snr + 1e-4, log_snr, log_snr - 1e-4], dtype=torch.float64))
        x_t = data.flow_map(path, x0.expand(3, 3), t)
        position, clock = x_t / path.alpha(t)[:, None], (path.sigma(t) / path.alpha(t))[:, None]
        slope = (position[2] - position[0]) / (clock[2] - clock[0])
        model = data.denoiser(path)
        # A central difference over 1e-4: its own error is 1e-8.
        torch.testing.assert_close(model.posterior(x_t, t)[1][1], slope, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(path.to_eps(model(x_t, t, {}), x_t, t)[1], slope, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(data.flow_inverse(path, x_t, t), x0.expand(3, 3), rtol=0, atol=1e-12)
