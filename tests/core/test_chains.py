"""Sampled chains against their rules and the marginals of the analytic world."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from diffpref.path import GaussianPath, edm, rectified_flow, variance_preserving
from diffpref.transition import Ancestral, Chain, FlowSDE, StepRule, finish, sample_chain
from diffpref.types import Backbone
from tests.core.numbers import normal, number, sdxl_alphas_cumprod
from tests.core.transition_world import (
    CHW,
    DATA,
    FLOW,
    STEPS,
    TABLE,
    Wavy,
    assert_near,
    estimates,
    every_rule,
    published,
)

# Levels that fall from the first t of STEPS.
TIMES = {
    "eps": torch.tensor([999, 700, 300, 20]),
    "v": torch.tensor([999, 700, 300, 20]),
    "x0": torch.tensor([999, 700, 300, 20]),
    "flow": number(0.98, 0.7, 0.3, 0.02),
    "sde": number(1.0, 0.7, 0.3, 0.02),
    "edm": number(80.0, 5.0, 0.7, 0.01),
}


@every_rule
def test_a_chain_follows_its_rule_and_knows_its_densities(name: str, rule: StepRule) -> None:
    path, times = STEPS[name]()[0], TIMES[name]
    model, cond = Wavy(path), {"text": number(0.0, 1.0)}
    start = normal(2, *CHW) * (1 + path.sigma(times[0]))
    chain = sample_chain(model, start, times, cond, rule=rule, generator=torch.Generator().manual_seed(4))
    assert chain.latents.shape == (4, 2, *CHW) and chain.log_density.shape == (3, 2)
    assert torch.equal(chain.latents[0], start) and torch.equal(chain.times, times)
    noise = torch.Generator().manual_seed(4)
    for j in range(3):
        x, t, s = chain.latents[j], times[j].expand(2), times[j + 1].expand(2)
        mean, std = published(name, rule, model(x, t, cond), x, t, s)
        z = torch.randn(x.shape, dtype=x.dtype, generator=noise)
        torch.testing.assert_close(chain.latents[j + 1], mean + std * z, rtol=1e-9, atol=1e-9)
        density = Normal(mean, std).log_prob(chain.latents[j + 1]).flatten(1).mean(1)
        # Without the stored latent's rounding: -z^2 / 2 - log std - log(2 pi) / 2.
        assert_near(chain.log_density[j], density)
        assert_near(density, (-(z**2) / 2 - std.log() - math.log(2 * math.pi) / 2).flatten(1).mean(1))
    assert not any(model.graphs[:3])


def test_a_chain_takes_ddpm_by_default() -> None:
    run = partial(sample_chain, Wavy(TABLE), normal(2, *CHW), TIMES["eps"])
    first, second = (
        run(rule=rule, generator=torch.Generator().manual_seed(0)).latents for rule in (None, Ancestral(1.0))
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["v", "flow"])
def test_a_chain_does_not_depend_on_its_batch(name: str) -> None:
    path, times, start = STEPS[name]()[0], TIMES[name], normal(5, *CHW)
    text = torch.linspace(-1, 1, 5, dtype=torch.float64)

    def run(which: slice) -> Chain:
        noise = [torch.Generator().manual_seed(seed) for seed in range(5)[which]]
        return sample_chain(Wavy(path), start[which], times, {"text": text[which]}, generator=noise)

    batch = run(slice(0, 5))
    for index in range(5):
        alone = run(slice(index, index + 1))
        torch.testing.assert_close(batch.latents[:, index], alone.latents[:, 0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(batch.log_density[:, index], alone.log_density[:, 0], rtol=1e-12, atol=1e-12)
    assert not torch.equal(batch.latents[1, 0] - batch.latents[1, 1], batch.latents[0, 0] - batch.latents[0, 1])


def test_a_half_precision_chain_stays_one() -> None:
    path = variance_preserving(sdxl_alphas_cumprod().float())
    chain = sample_chain(Wavy(path), normal(2, *CHW).bfloat16(), TIMES["eps"])
    assert chain.latents.dtype == torch.bfloat16 and chain.log_density.dtype == torch.float32


def world(name: str, count: int) -> tuple[GaussianPath, Tensor, StepRule]:
    """Levels even in log SNR, or in t for the SDE of Flow-GRPO, which has its own clock."""
    log_snr = torch.linspace(6, -6, count + 1, dtype=torch.float64)
    if name == "vp":
        return variance_preserving(log_snr.sigmoid(), "v_prediction"), torch.arange(count, -1, -1), Ancestral()
    if name == "edm":
        return edm(), (-log_snr.flip(0) / 2).exp(), Ancestral()
    return rectified_flow(), torch.linspace(0.98, 0.02, count + 1, dtype=torch.float64), FlowSDE()


def drift(name: str, count: int) -> tuple[float, float]:
    """How far mean and standard deviation of 20,000 sampled elements are off at the last level."""
    path, times, rule = world(name, count)
    x = torch.zeros(4, 5_000, dtype=torch.float64)
    mean, std = (value[0].item() for value in DATA.marginal(path, x, times[0].expand(4)))
    noise = torch.Generator().manual_seed(11)
    start = mean + std * torch.randn(x.shape, dtype=x.dtype, generator=noise)
    last = sample_chain(DATA.denoiser(path), start, times, rule=rule, generator=noise).latents[-1]
    mean, std = (value[0].item() for value in DATA.marginal(path, x, times[-1].expand(4)))
    return abs(last.mean().item() - mean), abs(last.std().item() - std)


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_many_steps_reach_the_marginal(name: str) -> None:
    off_mean, off_std = drift(name, 200)
    # 20,000 draws: four standard errors of the mean are 0.037 and of the deviation 0.026, and 200 steps add 0.015.
    assert off_mean < 0.037 and off_std < 0.04, (off_mean, off_std)
    assert drift(name, 5)[1] > 0.1  # five steps do not: the check can fail


@pytest.mark.parametrize("name", STEPS)
def test_a_chain_ends_in_the_estimate_of_the_network(name: str) -> None:
    path = STEPS[name]()[0]
    cond = {"text": number(0.3, -0.8)}
    model = Wavy(path)
    chain = sample_chain(model, normal(2, *CHW), TIMES[name], cond, generator=torch.Generator().manual_seed(1))
    t, x = TIMES[name][-1].expand(2), chain.latents[-1]
    expected, _ = estimates(name, model(x, t, cond), x, t)
    model.graphs.clear()
    assert_near(finish(model, chain, cond), expected)
    assert model.graphs == [False]
    sure = DATA.denoiser(path)
    assert_near(finish(sure, chain), sure.posterior(x, t)[0])


@pytest.mark.parametrize(
    ("path", "times", "message"),
    [
        (FLOW, number(0.5), "two or more falling levels"),
        (FLOW, number(0.5, 0.7), "two or more falling levels"),
        (FLOW, number(0.5, 0.5), "two or more falling levels"),
        (FLOW, number(0.9, 0.5, 0.6), "two or more falling levels"),
        (FLOW, number(0.9, math.nan), "two or more falling levels"),
        (FLOW, number(0.9, 0.5, 0.8, 0.4).reshape(2, 2), "two or more falling levels"),
        (FLOW, number(0.5, 0.0), "times must lie above the clean end"),
        (FLOW, number(1.2, 0.5), "times must lie above the clean end"),
        (TABLE, torch.tensor([1000, 5]), "times must lie above the clean end"),
        (TABLE, torch.tensor([5, -1]), "times must lie above the clean end"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_chain_refuses_what_does_not_fall(path: GaussianPath, times: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_chain(Wavy(path), normal(2, *CHW), times)


def test_a_chain_wants_a_generator_for_each_sample() -> None:
    with pytest.raises(ValueError, match="one for each of the 2 samples, got 3"):
        sample_chain(Wavy(FLOW), normal(2, *CHW), number(0.9, 0.5), generator=[torch.Generator()] * 3)


def test_wavy_is_a_backbone() -> None:
    assert isinstance(Wavy(FLOW), Backbone)
