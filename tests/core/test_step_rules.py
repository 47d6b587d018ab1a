"""Stochastic steps against the published formulas and the marginals of the analytic world."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffpref.path import GaussianPath, edm, rectified_flow, variance_preserving
from diffpref.transition import Ancestral, FlowSDE, StepRule
from tests.core.numbers import normal, number
from tests.core.transition_world import CHW, DATA, STEPS, assert_near, every_rule, published, wide


@every_rule
def test_a_step_has_the_published_mean_and_deviation(name: str, rule: StepRule) -> None:
    path, t, s = STEPS[name]()
    x, output = normal(2, 3, *CHW)
    step = rule(path, t, s)
    mean, std = published(name, rule, output, x, t, s)
    assert_near(wide(step.keep) * x + wide(step.gain) * output, mean)
    assert_near(wide(step.std), std)
    assert isinstance(rule, StepRule)


def test_fixed_numbers() -> None:
    """On paper: abar from .25 to .64 is std^2 = .36/.75 (1 - .25/.64) = .2925; flow from .5 to .25 has g^2 = .49."""
    step = Ancestral()(variance_preserving(number(0.64, 0.25)), torch.tensor([1]), torch.tensor([0]))
    assert_near(step.std, number(0.2925**0.5))
    assert_near(step.keep, number(1.6))
    assert_near(step.gain, number((0.36 - 0.2925) ** 0.5 - 1.6 * 0.75**0.5))
    step = FlowSDE()(rectified_flow(), number(0.5), number(0.25))
    # 1 - .49 / 4;  (1 + .49 / 2) (-.25);  .7 / 2
    for got, expected in [(step.keep, 0.8775), (step.gain, -0.31125), (step.std, 0.35)]:
        assert_near(got, number(expected))
    step = Ancestral()(edm(), number(2.0), number(1.0))
    # sigma_up = sqrt(3) / 2, sigma_down = 1/2: x + (x - D) / 2 (1/2 - 2)
    for got, expected in [(step.keep, 0.25), (step.gain, 0.75), (step.std, 0.75**0.5)]:
        assert_near(got, number(expected))


def test_the_defaults_are_ddpm_and_flow_grpo() -> None:
    assert Ancestral() == Ancestral(eta=1.0) and FlowSDE() == FlowSDE(noise=0.7)


@pytest.mark.parametrize("name", sorted(STEPS.keys() - {"sde"}))
def test_without_eta_the_step_is_the_probability_flow(name: str) -> None:
    path, t, s = STEPS[name]()
    step = Ancestral(eta=0.0)(path, t, s)
    assert torch.equal(step.std, torch.zeros_like(step.std))
    x, output = normal(2, 3, *CHW)
    mean, _ = published(name, Ancestral(0.0), output, x, t, s)
    assert_near(wide(step.keep) * x + wide(step.gain) * output, mean)


@every_rule
def test_an_exact_short_step_keeps_the_marginal(name: str, rule: StepRule) -> None:
    """keep^2 V + std^2 with the exact denoiser: V_s up to the square of the step, so halving it quarters the error."""

    def error(dt: float) -> Tensor:
        log_snr = torch.tensor([-1.0, -1.0 + dt, 1.0, 1.0 + dt], dtype=torch.float64)
        if name == "edm":
            path, times = edm(), (-log_snr / 2).exp()
        elif name in ("flow", "sde"):
            path, times = rectified_flow(), (-log_snr / 2).sigmoid()
        else:
            prediction = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}[name]
            path, times = variance_preserving(log_snr.sigmoid(), prediction), torch.arange(4)
        t, s = times[::2], times[1::2]
        model, step = DATA.denoiser(path), rule(path, t, s)
        one = torch.ones(2, 1, dtype=torch.float64)
        slope = (model(one, t, {}) - model(0 * one, t, {})).flatten()
        start = model(0 * one, t, {}).flatten()
        (mean_t, std_t), (mean_s, std_s) = (DATA.marginal(path, one, level) for level in (t, s))
        factor = step.keep + step.gain * slope
        mean = factor * mean_t.flatten() + step.gain * start
        variance = factor**2 * std_t.flatten() ** 2 + step.std**2
        return torch.cat([(mean - mean_s.flatten()).abs(), (variance - std_s.flatten() ** 2).abs()])

    coarse, fine = error(0.02), error(0.01)
    assert (coarse < 2 * 0.02**2).all(), coarse
    # Ancestral's mean is exact.
    assert ((fine < coarse / 3.5) | (coarse < 1e-12)).all(), (coarse, fine)


def test_flow_sde_takes_any_prediction_on_the_straight_path() -> None:
    """A network that says x0 where another says v takes the same step: v = (x - x0) / t."""
    of_v = rectified_flow()
    of_x0 = replace(of_v, a=torch.ones_like, b=torch.zeros_like)
    _, t, s = STEPS["sde"]()
    x, v = normal(2, 3, *CHW)
    one, other = (FlowSDE()(path, t, s) for path in (of_v, of_x0))
    assert_near(wide(other.keep) * x + wide(other.gain) * (x - wide(t) * v), wide(one.keep) * x + wide(one.gain) * v)
    assert torch.equal(other.std, one.std)


@pytest.mark.parametrize(
    ("path", "t"),
    [
        (edm(), number(0.5)),
        (variance_preserving(number(0.9, 0.5)), torch.tensor([1])),
        (variance_preserving(number(0.9, 0.5, 0.0), "v_prediction"), torch.tensor([2])),  # alpha 0 and sigma 1
    ],
)
def test_flow_sde_is_for_the_straight_path(path: GaussianPath, t: Tensor) -> None:
    with pytest.raises(ValueError, match=r"FlowSDE is for the straight path.*Ancestral\(\)"):
        FlowSDE()(path, t, t // 2)
