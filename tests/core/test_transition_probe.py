"""Log-densities of steps against torch's Normal, and the probe of a step."""

import math

import pytest
import torch
from torch.distributions import Normal

from diffpref.errors import compare
from diffpref.path import GaussianPath, variance_preserving
from diffpref.probe import transition_probe
from diffpref.transition import Ancestral, FlowSDE, Step, StepRule, log_density
from tests.core.numbers import normal, number, sdxl_alphas_cumprod
from tests.core.transition_world import CHW, FLOW, STEPS, TABLE, Wavy, assert_near, every_rule, published


@every_rule
def test_log_density_is_that_of_torch(name: str, rule: StepRule) -> None:
    path, t, s = STEPS[name]()
    x, output, x_s = normal(3, 3, *CHW)
    density = log_density(rule(path, t, s), output, x, x_s)
    assert_near(density, Normal(*published(name, rule, output, x, t, s)).log_prob(x_s).flatten(1).mean(1))


def test_log_density_in_half_precision_is_computed_in_float32() -> None:
    step = Step(*(torch.tensor([value], dtype=torch.float32) for value in (0.9, -0.3, 0.05)))
    x, output, x_s = normal(3, 1, 4, 50).bfloat16()
    density = log_density(step, output, x, x_s)
    assert density.dtype == torch.float32
    exact = Normal(0.9 * x.double() - 0.3 * output.double(), 0.05).log_prob(x_s.double()).mean((1, 2))
    torch.testing.assert_close(density.double(), exact, rtol=1e-5, atol=0)  # means of 200 squares in float32


@every_rule
def test_the_log_ratio_of_a_probe_is_that_of_the_policies(name: str, rule: StepRule) -> None:
    """D3PO, eq. 14: mean over elements of log pi_policy(x_s | x_t) - log pi_reference(x_s | x_t)."""
    path, t, s = STEPS[name]()
    policy, reference = Wavy(path), Wavy(path, -0.4)
    # Like a step that was sampled: near both means, on the scale of its noise.
    x = normal(3, 4, *CHW) * (1 + path.sigma(t)).reshape(-1, 1, 1, 1)
    cond = {"text": number(0.0, 1.0, -2.0)}
    x_s, expected = torch.empty_like(x), torch.empty(3, 4, dtype=torch.float64)
    for j in range(4):
        outputs = [model(x[:, j], t, cond) for model in (policy, reference)]
        (mean, std), (other, _) = (published(name, rule, output, x[:, j], t, s) for output in outputs)
        x_s[:, j] = mean + std * normal(3, *CHW, seed=j)
        ratio = Normal(mean, std).log_prob(x_s[:, j]) - Normal(other, std).log_prob(x_s[:, j])
        expected[:, j] = ratio.flatten(1).mean(1)
    probe = transition_probe(path, x, x_s, t, s, cond, rule=rule)
    assert_near(compare(policy, reference, probe).log_ratio, expected)
    assert expected.abs().amax() > 1e-3
    assert torch.equal(probe.t, t) and probe.x_t is x and probe.cond.keys() == {"text"}


def test_a_probe_takes_ddpm_by_default() -> None:
    path, t, s = STEPS["eps"]()
    x, x_s = normal(2, 3, 2, *CHW)
    by_default, named = transition_probe(path, x, x_s, t, s), transition_probe(path, x, x_s, t, s, rule=Ancestral(1.0))
    assert torch.equal(by_default.weight, named.weight) and torch.equal(by_default.target, named.target)
    assert by_default.cond == {}


def test_a_half_precision_probe_weighs_in_float32() -> None:
    path = variance_preserving(sdxl_alphas_cumprod().float())
    x, x_s = normal(2, 3, 2, *CHW).bfloat16()
    probe = transition_probe(path, x, x_s, *STEPS["eps"]()[1:])
    assert probe.target.dtype == torch.bfloat16 and probe.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("path", "t", "s", "message"),
    [
        (FLOW, (0.5,), (0.6,), "every step must go down"),
        (FLOW, (0.5,), (0.5,), "every step must go down"),
        (FLOW, (0.5,), (0.0,), "s must lie above the clean end"),
        (FLOW, (1.5,), (0.5,), "t must lie above the clean end"),
        (FLOW, (math.nan,), (0.5,), "t must lie above the clean end"),
        (FLOW, (0.5,), (math.nan,), "s must lie above the clean end"),
        (TABLE, (1000,), (5,), "t must lie above the clean end"),
        (TABLE, (5,), (-1,), "s must lie above the clean end"),
        (FLOW, (0.5, 0.4), (0.2,), "one time for each of the 1 prompts"),
        (FLOW, (0.5,), (0.2, 0.1), "one time for each of the 1 prompts"),
    ],
)
def test_a_probe_refuses_what_is_no_step(path: GaussianPath, t: tuple, s: tuple, message: str) -> None:
    x = normal(1, 2, *CHW)
    dtype = torch.int64 if path is TABLE else torch.float64
    with pytest.raises(ValueError, match=message):
        transition_probe(path, x, x, torch.tensor(t, dtype=dtype), torch.tensor(s, dtype=dtype))


def test_one_bad_prompt_is_enough() -> None:
    x = normal(2, 2, *CHW)
    with pytest.raises(ValueError, match="every step must go down"):
        transition_probe(FLOW, x, x, number(0.5, 0.5), number(0.2, 0.7))


@pytest.mark.parametrize("rule", [Ancestral(0.0), FlowSDE(0.0)])
def test_a_step_without_noise_has_no_probe(rule: StepRule) -> None:
    x = normal(1, 2, *CHW)
    with pytest.raises(ValueError, match="a step without noise has no density"):
        transition_probe(FLOW, x, x, number(0.5), number(0.2), rule=rule)


@pytest.mark.usefixtures("unchecked")
def test_a_probe_wants_two_latents_of_one_shape() -> None:
    with pytest.raises(ValueError, match=r"the shape of x_t \(1, 2, 2, 3\), got \(1, 1, 2, 3\)"):
        transition_probe(FLOW, normal(1, 2, *CHW), normal(1, 1, *CHW), number(0.5), number(0.2))
