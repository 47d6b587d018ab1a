"""Stochastic steps against the published formulas, torch's Normal, and the marginals of the analytic world."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import jaxtyping
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from diffpref.errors import compare
from diffpref.path import GaussianPath, edm, rectified_flow, variance_preserving
from diffpref.probe import transition_probe
from diffpref.transition import Ancestral, Chain, FlowSDE, Step, StepRule, finish, log_density, sample_chain
from diffpref.types import Backbone, Cond
from tests.gaussian import GaussianData
from tests.test_path import number, sdxl_alphas_cumprod

CHW = (2, 3)
DATA = GaussianData(0.7, 1.3)
assert_near = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Ordinary runs have no shape checks, and then the package's own messages are what a user sees."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def table_of(prediction: str) -> Callable[[], tuple[GaussianPath, Tensor, Tensor]]:
    return lambda: (
        variance_preserving(sdxl_alphas_cumprod(), prediction),
        torch.tensor([999, 500, 51]),
        torch.tensor([949, 100, 1]),
    )


# A path, levels t of each prompt, and those below, s.
STEPS: dict[str, Callable[[], tuple[GaussianPath, Tensor, Tensor]]] = {
    "eps": table_of("epsilon"),
    "v": table_of("v_prediction"),
    "x0": table_of("sample"),
    # At t = 1 Ancestral's sqrt(sigma_s^2 - std^2) is the root of a rounding: 1e-8.
    "flow": lambda: (rectified_flow(), number(0.98, 0.6, 0.1), number(0.95, 0.3, 0.02)),
    "sde": lambda: (rectified_flow(), number(1.0, 0.6, 0.1), number(0.95, 0.3, 0.02)),
    "edm": lambda: (edm(), number(80.0, 2.0, 0.1), number(60.0, 1.0, 0.002)),
}
RULES: list[tuple[str, StepRule]] = [(name, Ancestral(eta)) for name in STEPS if name != "sde" for eta in (0.5, 1.0)]
RULES += [("sde", FlowSDE()), ("sde", FlowSDE(1.1))]
every_rule = pytest.mark.parametrize(("name", "rule"), RULES)


def wide(t: Tensor) -> Tensor:
    return t.reshape(-1, 1, 1)


def estimates(name: str, output: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x0 and eps that a native output implies, written out for each convention."""
    if name in ("flow", "sde"):
        return x - wide(t) * output, x + (1 - wide(t)) * output
    if name == "edm":
        return output, (x - output) / wide(t)
    kept = wide(sdxl_alphas_cumprod()[t])
    if name == "eps":
        return (x - (1 - kept).sqrt() * output) / kept.sqrt(), output
    if name == "v":
        return kept.sqrt() * x - (1 - kept).sqrt() * output, kept.sqrt() * output + (1 - kept).sqrt() * x
    return output, (x - kept.sqrt() * output) / (1 - kept).sqrt()


def published(name: str, rule: StepRule, output: Tensor, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the step, as the papers print them."""
    x0, eps = estimates(name, output, x, t)
    if isinstance(rule, FlowSDE):  # methods.md 2.6, Flow-GRPO's sd3_sde_with_logprob
        sigma, dt, v = wide(t), wide(s - t), output
        std = rule.noise * (sigma / (1 - torch.where(sigma == 1, wide(s), sigma))).sqrt()
        mean = x * (1 + std**2 / (2 * sigma) * dt) + v * (1 + std**2 * (1 - sigma) / (2 * sigma)) * dt
        return mean, std * (-1 * dt).sqrt()
    assert isinstance(rule, Ancestral)
    if name == "edm":  # k-diffusion's get_ancestral_step and sample_euler_ancestral
        above, below = wide(t), wide(s)
        up = torch.minimum(below, rule.eta * (below**2 * (above**2 - below**2) / above**2).sqrt())
        down = (below**2 - up**2).sqrt()
        return x + (x - x0) / above * (down - above), up
    if name == "flow":  # DDIM in the clock of VP: x / (alpha^2 + sigma^2)^(1/2), kept = alpha^2 / (alpha^2 + sigma^2)
        norms = [((1 - wide(level)) ** 2 + wide(level) ** 2).sqrt() for level in (t, s)]
        kept_t, kept_s = ((1 - wide(level)) ** 2 / norm**2 for level, norm in zip((t, s), norms, strict=True))
        scale = norms[1]
    else:
        kept_t, kept_s, scale = wide(sdxl_alphas_cumprod()[t]), wide(sdxl_alphas_cumprod()[s]), 1.0
    # methods.md 2.1; Song et al. 2021, eq. 12 and 16
    std = rule.eta * ((1 - kept_s) / (1 - kept_t) * (1 - kept_t / kept_s)).sqrt()
    return scale * (kept_s.sqrt() * x0 + (1 - kept_s - std**2).sqrt() * eps), scale * std


class Wavy:
    """A network without any symmetry."""

    def __init__(self, path: GaussianPath, tilt: float = 0.2) -> None:
        self.path, self.tilt, self.graphs = path, tilt, []

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.graphs.append(torch.is_grad_enabled())
        shift = cond["text"].reshape(-1, 1, 1) if "text" in cond else 0.0
        return torch.sin(x_t + shift) + self.tilt * torch.cos(t.to(x_t.dtype)).reshape(-1, 1, 1) * x_t.roll(1, -1)


# --- steps


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


# --- log-densities


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


# --- the probe


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


FLOW, TABLE = rectified_flow(), variance_preserving(sdxl_alphas_cumprod())


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


# --- chains

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
