"""Shares of noise, times, and what is no time."""

import pytest
import torch
from torch import Tensor

from diffpref.path import GaussianPath, edm, rectified_flow, variance_preserving
from tests.core.conventions import Convention, every_convention, every_path
from tests.core.numbers import assert_exact, number, sdxl_alphas_cumprod
from tests.gaussian import PATHS_AT, GaussianData


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
