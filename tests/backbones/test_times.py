"""Which times are drawn: ranges and lists, against the official code's rules and closed distributions."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from diffpref.backbones import Checkpoint, Times, open_backbone
from diffpref.backbones.edm import LogNormalTimes
from diffpref.backbones.flow import FlowTimes
from diffpref.backbones.unet import IndexTimes, index_times, table_path, without_signal
from diffpref.path import rectified_flow

TURBO = (249.0, 499.0, 749.0, 999.0)


def drawn(times: Any, count: int = 2000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([times.draw(generator) for _ in range(count)])


def test_without_limits_an_index_is_the_draw_that_it_was() -> None:
    generator = torch.Generator().manual_seed(3)
    assert [int(IndexTimes().draw(generator)) for _ in range(5)] == [
        int(torch.randint(1000, (), generator=again)) for again in [torch.Generator().manual_seed(3)] for _ in range(5)
    ]


def test_the_official_rules_of_turbo_and_refiner() -> None:
    """There, an index i of a thousand becomes 250 (i mod 4) + 249 for turbo, and i mod 200 for the refiner."""
    every = torch.arange(1000)
    turbo = drawn(index_times(Times(timesteps=TURBO)))
    assert turbo.dtype == torch.int64 and set(turbo.tolist()) == set((250 * (every % 4) + 249).tolist())
    # Each a quarter of the time; the deviation of a share of 2000 is 0.01.
    assert all(abs(float((turbo == t).double().mean()) - 0.25) < 0.04 for t in TURBO)
    refiner = drawn(index_times(Times(t_max=199)), 4000)
    assert set(refiner.tolist()) == set((every % 200).tolist())
    assert abs(float(refiner.double().mean()) - 99.5) < 4
    assert set(drawn(index_times(Times(t_min=998))).tolist()) == {998, 999}


@pytest.mark.parametrize("density", ["uniform", "logit_normal"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_range_of_a_flow_keeps_the_densitys_form(density: Any, shift: float) -> None:
    low, high, mean, std = 0.2, 0.9, -0.3, 0.8

    def below(t: torch.Tensor) -> torch.Tensor:
        u = t / (shift - (shift - 1) * t)
        return u if density == "uniform" else torch.special.ndtr((u.logit() - mean) / std)

    found = drawn(FlowTimes(density, mean, std, shift, low, high)).double().sort().values
    assert low <= found[0] and found[-1] <= high
    low_share, high_share = below(torch.tensor([low, high], dtype=torch.float64))
    shares = (below(found) - low_share) / (high_share - low_share)
    # Kolmogorov and Smirnov's statistic, at a level of 1 %.
    assert (shares - torch.arange(1, 2001) / 2000).abs().max() < 1.63 / 2000**0.5 + 1e-3
    rectified_flow().check_times(found)


@pytest.mark.parametrize(("low", "high"), [(0.5, math.inf), (0.0, 0.2), (40.0, 80.0)])
def test_a_range_of_sigmas_keeps_the_densitys_form(low: float, high: float) -> None:
    found = drawn(LogNormalTimes(-1.2, 1.2, low, high)).double().sort().values
    assert low <= found[0] and found[-1] <= high
    ends = torch.tensor([low, high], dtype=torch.float64)
    low_share, high_share = (0.5 * torch.special.erfc((ends.log() + 1.2) / 1.2 / 2**0.5)).tolist()
    shares = (0.5 * torch.special.erfc((found.log() + 1.2) / 1.2 / 2**0.5) - low_share) / (high_share - low_share)
    assert (shares - torch.arange(1, 2001) / 2000).abs().max() < 1.63 / 2000**0.5 + 1e-3


def test_lists_of_shares_and_of_sigmas() -> None:
    assert set(drawn(FlowTimes(only=(0.25, 0.5))).tolist()) == {0.25, 0.5}
    assert set(drawn(LogNormalTimes(0.0, 1.0, only=(2.0, 80.0))).tolist()) == {2.0, 80.0}


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (Times(t_min=-1), r"t_min must be in \[0, 999\] on this backbone, got -1"),
        (Times(t_max=1000), r"t_max must be in \[0, 999\] on this backbone, got 1000"),
        (Times(timesteps=(0, 1200)), "timesteps must be in .* got 1200"),
        (Times(t_min=0.5), "must be whole numbers on a path of indices, got 0.5"),
        (Times(t_min=500, t_max=400), "t_min must not be above t_max, got 500 and 400"),
        (Times(t_min=5, timesteps=TURBO), "timesteps lists the times that are drawn: leave t_min out"),
    ],
)
def test_times_that_are_no_indices_are_refused(times: Times, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        index_times(times)


def test_limits_are_the_familys_own(make_base: Callable[..., Checkpoint]) -> None:
    base = make_base()
    family = open_backbone(base, Times(timesteps=TURBO, zero_terminal_snr=True), resolution=32)
    generator = torch.Generator().manual_seed(0)
    assert {int(family.draw_t(generator)) for _ in range(60)} == set(map(int, TURBO))
    assert family.path.alpha(torch.tensor([999])) == 0


def test_the_table_without_signal_is_lins() -> None:
    """Against diffusers' own, which works on betas; the official code has the same function."""
    betas = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").betas
    table = (1 - betas).cumprod(0)
    expected = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    # diffusers goes to betas and back in float32.
    torch.testing.assert_close(without_signal(table), expected, rtol=0, atol=2e-6)
    assert without_signal(table)[0] == table[0] and without_signal(table)[-1] == 0


def test_the_levels_of_a_checkpoint_are_stretched_on_request(make_base: Callable[..., Checkpoint]) -> None:
    base = make_base()
    t = torch.tensor([0, 500, 999])
    plain, stretched = table_path(base), table_path(base, zero_terminal_snr=True)
    assert plain.alpha(t)[0] == stretched.alpha(t)[0] and bool((plain.alpha(t)[1:] > stretched.alpha(t)[1:]).all())
    # At the last level epsilon is the latent itself: it can be asked for, and says nothing of the picture.
    eps = torch.randn(3, 4)
    assert torch.equal(stretched.target(torch.ones(3, 4), eps, t), eps)
    assert torch.equal(stretched.noise(torch.ones(3, 4), eps, t)[2], eps[2])
