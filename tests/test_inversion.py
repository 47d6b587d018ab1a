"""Inversion against oracles, the solved flow of the analytic world, a sampler written out, and diffusers' scheduler."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from diffpref.errors import compare, model_error
from diffpref.inversion import Inverter, invert, levels
from diffpref.path import GaussianPath, edm, rectified_flow, variance_preserving
from diffpref.probe import inversion_probe
from diffpref.transition import Ancestral
from diffpref.types import Cond
from examples.official_inversion import invert_as_published
from tests.gaussian import GaussianData
from tests.test_path import assert_exact, number, sdxl_alphas_cumprod

CHW = (2, 3)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Ordinary runs have no shape checks, and then the package's own messages are what a user sees."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def table_of(prediction: str) -> Callable[[], tuple[GaussianPath, Tensor]]:
    # Both ends of SD's table, two neighbours, and two between.
    return lambda: (variance_preserving(sdxl_alphas_cumprod(), prediction), torch.tensor([0, 1, 999, 50, 640]))


# A path and a batch of times that reaches from almost clean to almost noise.
PATHS: dict[str, Callable[[], tuple[GaussianPath, Tensor]]] = {
    "eps": table_of("epsilon"),
    "v": table_of("v_prediction"),
    "x0": table_of("sample"),
    "flow": lambda: (rectified_flow(), number(1e-3, 0.02, 0.999, 0.3, 0.7)),
    "edm": lambda: (edm(), number(2e-3, 0.02, 80.0, 0.5, 3.0)),
}
every_path = pytest.mark.parametrize("name", PATHS)
FORMS: dict[str, dict[str, int | bool]] = {
    "ddim": {},
    "average": {"renoise": 1, "average": True},
    "renoise": {"renoise": 3},
    "renoise, average": {"renoise": 3, "average": True},
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def alpha_sigma(name: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """The scales of each sample, written out; "n 1 1"."""
    t = t.reshape(-1, 1, 1)
    if name == "flow":
        return 1 - t, t
    if name == "edm":
        return torch.ones_like(t), t
    kept = sdxl_alphas_cumprod()[t]
    return kept.sqrt(), (1 - kept).sqrt()


@dataclass
class Oracle:
    """A network that finds the noise `eps` in every latent, and says so in the native prediction."""

    name: str
    path: GaussianPath
    eps: Tensor

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        alpha, sigma = alpha_sigma(self.name, t)
        x0 = (x_t - sigma * self.eps) / alpha
        native = {"eps": self.eps, "v": alpha * self.eps - sigma * x0, "x0": x0, "flow": self.eps - x0, "edm": x0}
        return native[self.name]


@dataclass
class Wavy:
    """A network without any symmetry, that counts its calls and remembers their t."""

    path: GaussianPath
    calls: list[Tensor] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.calls.append(t)
        shift = cond["text"].reshape(-1, 1, 1) if "text" in cond else 0.0
        t = t.reshape(-1, 1, 1).to(x_t.dtype)
        return torch.sin(x_t + shift) + 0.1 * torch.cos(t) * x_t.roll(1, -1)


# --- oracles


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


# --- the solved flow of the analytic world


DATA = GaussianData(0.7, 1.3)


def fine_table() -> GaussianPath:
    """20,000 levels, even in the share from 5e-5: the grid of indices is one of shares, and level 0 almost clean."""
    share = torch.linspace(5e-5, 1, 20_000, dtype=torch.float64)
    return variance_preserving((1 - share) ** 2 / ((1 - share) ** 2 + share**2), "v_prediction")


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


# --- the fixed point


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


# --- levels


@every_path
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_levels_rise_evenly_to_exactly_t(name: str, steps: int) -> None:
    path, t = PATHS[name]()
    grid = levels(path, t, steps)
    assert len(grid) == steps and torch.equal(grid[-1], t)
    assert {(level.dtype, level.shape) for level in grid} == {(t.dtype, t.shape)}
    stacked = torch.stack(grid)
    assert (stacked.diff(dim=0) >= 0).all() and (stacked <= t).all()
    shares = torch.stack([sigma / (alpha + sigma) for alpha, sigma in (alpha_sigma(name, level) for level in grid)])
    shares = shares.flatten(1)
    off = (shares - torch.arange(1, steps + 1).double()[:, None] / steps * shares[-1]).abs()
    if name in ("flow", "edm"):
        assert off.amax() < 1e-12
    else:  # no index would have been nearer
        alpha, sigma = alpha_sigma(name, torch.arange(1000))
        table = (sigma / (alpha + sigma)).flatten()
        even = torch.arange(1, steps + 1).double()[:, None] / steps * shares[-1]
        torch.testing.assert_close(off, (table - even[..., None]).abs().amin(-1), rtol=0, atol=1e-12)


def test_a_rounded_level_is_not_above_t() -> None:
    # In bfloat16 the share of 80 is 0.98828 instead of 0.98765, and the level of 0.98828 is 84.
    t = torch.tensor([80.0, 2.0, 0.01]).bfloat16()
    assert (torch.stack(levels(edm(), t, 1000)) <= t).all()


def test_the_labels_of_ddim_are_the_levels_below() -> None:
    path, t = PATHS["flow"]()
    model = Wavy(path)
    invert(model, normal(len(t), *CHW), t, steps=3)
    first, second, _ = levels(path, t, 3)
    assert [torch.equal(got, label) for got, label in zip(model.calls, (first, first, second), strict=True)] == [
        True
    ] * 3


def test_the_labels_of_renoise_are_the_destinations() -> None:
    path, t = PATHS["flow"]()
    model = Wavy(path)
    invert(model, normal(len(t), *CHW), t, steps=2, renoise=2)
    first, last = levels(path, t, 2)
    wanted = [first, first, first, first, last, last]
    assert all(torch.equal(got, label) for got, label in zip(model.calls, wanted, strict=True))


# --- what a batch costs, and that its samples do not meet


@pytest.mark.parametrize("inverter", [invert, invert_as_published])
@every_form
def test_a_batch_of_times_costs_what_one_sample_costs(form: dict, inverter: Inverter) -> None:
    path = variance_preserving(sdxl_alphas_cumprod())
    t, text = torch.arange(3, 1000, 62)[:16], torch.linspace(0, 3, 16, dtype=torch.float64)
    x0, seeds = normal(16, *CHW), range(16)

    def run(which: slice) -> tuple[Tensor, int]:
        model = Wavy(path)
        noise = [torch.Generator().manual_seed(seed) for seed in seeds[which]]
        cond = {"text": text[which]}
        x_t = inverter(model, x0[which], t[which], cond, steps=10, eta=0.3, generator=noise, **form)
        return x_t, len(model.calls)

    batch, calls = run(slice(0, 16))
    assert calls == 10 * (form.get("renoise", 0) + 1)
    for index in (0, 1, 7, 15):
        alone, calls_alone = run(slice(index, index + 1))
        assert calls_alone == calls
        # Vectorised sines differ in the last bit from single ones; rounding grows by alpha(t) along the climb.
        torch.testing.assert_close(batch[index], alone[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["flow", "edm"])
def test_samples_on_continuous_paths_do_not_meet(name: str) -> None:
    path, t = PATHS[name]()
    x0 = normal(len(t), *CHW)
    batch = invert(Wavy(path), x0, t, steps=4, renoise=1, average=True)
    for index in range(len(t)):
        one = slice(index, index + 1)
        alone = invert(Wavy(path), x0[one], t[one], steps=4, renoise=1, average=True)
        torch.testing.assert_close(batch[one], alone, rtol=1e-12, atol=1e-12)


# --- eta


def ddim_std(name: str, t: Tensor, s: Tensor) -> Tensor:
    """sigma_eta=1 from t down to s: methods.md 2.1 on a table, k-diffusion's sigma_up on EDM; "n 1 1"."""
    if name == "edm":
        t, s = t.reshape(-1, 1, 1), s.reshape(-1, 1, 1)
        return s * (t**2 - s**2).sqrt() / t
    above, below = (sdxl_alphas_cumprod()[level].reshape(-1, 1, 1) for level in (t, s))
    return ((1 - below) / (1 - above) * (1 - above / below)).sqrt()


@pytest.mark.parametrize("name", ["eps", "v", "x0", "edm"])
def test_eta_adds_the_noise_of_the_ddim_posterior(name: str) -> None:
    """With an oracle each noise only shrinks by the ratio of the alphas on its way up, so the sum is known."""
    path, t = PATHS[name]()
    t = t[3:]
    x0, eps = normal(2, len(t), *CHW)
    x_t = invert(Oracle(name, path, eps), x0, t, steps=4, eta=0.3, generator=torch.Generator().manual_seed(9))
    grid, noise = levels(path, t, 4), torch.Generator().manual_seed(9)
    top, sigma = alpha_sigma(name, t)
    expected = top * x0 + sigma * eps
    for below, above in zip(grid[:-1], grid[1:], strict=True):  # none in the first step, from the clean end
        z = torch.randn(x0.shape, dtype=x0.dtype, generator=noise)
        reached = top / alpha_sigma(name, above)[0]
        # The oracle reads x0 = (x - sigma eps) / alpha, so what was added is carried along as part of the picture.
        expected = expected + reached * 0.3 * ddim_std(name, above, below) * z
    torch.testing.assert_close(x_t, expected, rtol=1e-9, atol=1e-9)


def test_without_eta_nothing_is_random() -> None:
    path, t = PATHS["v"]()
    x0, state = normal(len(t), *CHW), torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    invert(Wavy(path), x0, t, steps=3, generator=generator)
    assert torch.equal(generator.get_state(), before) and torch.equal(torch.get_rng_state(), state)


def test_eta_draws_from_what_it_is_given() -> None:
    path, t = PATHS["flow"]()
    x0 = normal(len(t), *CHW)
    run = partial(invert, Wavy(path), x0, t, steps=3, eta=0.5)
    seeded = run(generator=torch.Generator().manual_seed(3))
    assert torch.equal(seeded, run(generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(seeded, run(generator=torch.Generator().manual_seed(4)))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert torch.equal(seeded, run())


# --- the published scripts

# tau = a x0 + b eps with an oracle that always finds eps, worked out in NumPy from diffusers 0.20's step: the start is
# alphas_cumprod[0] there, since SD's scheduler has set_alpha_to_one false. methods.md 9.3 has the b of a clean start
# (3.34, 1.49, ...), which is not what the scripts run.
OFFICIAL = {
    10: {10: (-0.5094, 3.0625), 50: (-0.1368, 1.3614), 102: (-0.2331, 1.4362), 402: (-0.1636, 1.0992)},
    5: {10: (-1.3042, 4.8309), 50: (-0.4901, 2.1475), 301: (-0.1821, 1.1551)},
}
OFFICIAL[10] |= {150: (-0.1017, 1.1388), 999: (0.0502, 0.9918)}
OFFICIAL[10] |= {0: (-0.0001, 0.4163), 1: (0.0103, 0.2940), 101: (0.0012, 0.9157)}  # a level itself is the end
OFFICIAL[7] = {600: (-0.1365, 1.0405), 999: (0.0825, 0.9865)}  # 1000 / 7 is no whole number


@pytest.mark.parametrize("steps", OFFICIAL)
@every_form
def test_the_published_inversion_leaves_part_of_the_picture_in_the_noise(steps: int, form: dict) -> None:
    t = torch.tensor(list(OFFICIAL[steps]))
    path, (x0, eps) = variance_preserving(sdxl_alphas_cumprod()), normal(2, len(t), *CHW)
    x_t = invert_as_published(Oracle("eps", path, eps), x0, t, steps=steps, **form)
    a, b = number(*sum(OFFICIAL[steps].values(), ())).reshape(-1, 2).T.reshape(2, -1, 1, 1)
    alpha, sigma = alpha_sigma("eps", t)
    # Four decimals of a and b.
    torch.testing.assert_close((x_t - alpha * x0) / sigma, a * x0 + b * eps, rtol=0, atol=5e-4)


def test_official_eta_is_the_posterior_between_two_levels() -> None:
    t = torch.tensor([50, 250, 999])
    path, (x0, eps) = variance_preserving(sdxl_alphas_cumprod()), normal(2, 3, *CHW)
    run = partial(invert_as_published, Oracle("eps", path, eps), x0, t, steps=10)
    noise, added = torch.Generator().manual_seed(2), torch.zeros_like(x0)
    last = torch.tensor([101, 301, 901])  # methods.md 9.3: 1 + 100 ceil((t - 1) / 100), and no more than 901
    top = alpha_sigma("eps", last)[0]
    for above in range(1, 902, 100):
        z = torch.randn(x0.shape, dtype=x0.dtype, generator=noise)
        pair = torch.full_like(t, above), torch.full_like(t, max(above - 100, 0))
        carried = top / alpha_sigma("eps", pair[0])[0] * 0.2 * ddim_std("eps", *pair) * z
        added = added + carried * (above <= last).reshape(-1, 1, 1)
    assert_exact(run(eta=0.2, generator=torch.Generator().manual_seed(2)) - run(), added)


@pytest.mark.parametrize("steps", [7, 10, 50])
def test_the_published_inversion_is_the_loop_of_diffusers(steps: int) -> None:
    """The scripts' loop (InPO, train.py:995-1011) around diffusers' own step, at every kind of t."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler

    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    inverse = DDIMInverseScheduler(**config, set_alpha_to_one=False, clip_sample=False, steps_offset=1)
    forward = DDIMScheduler(**config, set_alpha_to_one=False, clip_sample=False)
    inverse.set_timesteps(steps)
    stride = 1000 // steps
    sources = inverse.timesteps - stride  # diffusers 0.20 rolled this list and stepped up from its entries
    path = variance_preserving(inverse.alphas_cumprod.double())
    t = torch.tensor([0, 1, 2, 101, 102, 640, 999])
    x0, model = normal(len(t), *CHW), Wavy(path)
    noise = [torch.Generator().manual_seed(seed) for seed in range(len(t))]
    got = invert_as_published(model, x0, t, steps=steps, eta=0.1, generator=noise)
    for index in range(len(t)):
        x, generator = x0[index : index + 1], torch.Generator().manual_seed(index)
        for source in sources[sources < t[index]].tolist():
            eps = model(x, torch.tensor([source]), {})
            x = inverse.step(eps, source + stride, x).prev_sample
            std = forward._get_variance(source + stride, source) ** 0.5
            x = x + 0.1 * std * torch.randn(x.shape[1:], dtype=x.dtype, generator=generator)
        # diffusers' table is float32: 1 - alphas_cumprod[0] has four digits.
        torch.testing.assert_close(got[index], x[0], rtol=2e-4, atol=2e-4)


def test_official_labels_are_the_sources() -> None:
    path = variance_preserving(sdxl_alphas_cumprod())
    model = Wavy(path)
    invert_as_published(model, normal(1, *CHW), torch.tensor([999]), steps=5, renoise=1, average=True)
    assert [label.item() for label in model.calls] == [-199, -199, 1, 1, 201, 201, 401, 401, 601, 601]


@every_form
def test_the_published_estimates_written_out(form: dict) -> None:
    path, t = variance_preserving(sdxl_alphas_cumprod()), torch.tensor([700, 1])
    x0, model = normal(2, *CHW), Wavy(path)
    got = invert_as_published(model, x0, t, steps=2, **form)
    x = x0
    for source, here, there in ((-499, 0, 1), (1, 1, 501)):
        (a_here, s_here), (a, s) = (alpha_sigma("eps", torch.tensor([level])) for level in (here, there))
        estimates = [model(x, torch.tensor([source] * 2), {})]
        for _ in range(form.get("renoise", 0)):
            above = a * (x - s_here * estimates[-1]) / a_here + s * estimates[-1]
            estimates.append(model(above, torch.tensor([source] * 2), {}))
        eps = sum(estimates) / len(estimates) if form.get("average") else estimates[-1]
        climbed = a * (x - s_here * eps) / a_here + s * eps
        x = torch.where((t > source).reshape(-1, 1, 1), climbed, x)
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)


# --- types, gradients, devices


def test_a_half_precision_picture_stays_one() -> None:
    path, t = variance_preserving(sdxl_alphas_cumprod().float()), torch.tensor([0, 500, 999])
    x0, eps = normal(2, 3, 4, 50)
    half = Oracle("eps", path, eps.bfloat16())
    noise = torch.Generator().manual_seed(0)
    for extra in ({}, {"renoise": 1, "average": True}, {"eta": 0.01, "generator": noise}):
        for inverter in (invert, invert_as_published):
            assert inverter(half, x0.bfloat16(), t, steps=10, **extra).dtype == torch.bfloat16
    alpha, sigma = alpha_sigma("eps", t)
    x_t = invert(half, x0.bfloat16(), t, steps=10)
    # Ten roundings of 2^-9 each, of numbers up to 4.
    torch.testing.assert_close(x_t.double(), alpha * x0 + sigma * eps, rtol=0, atol=0.06)


def test_a_float32_table_and_float64_pictures() -> None:
    path, t = variance_preserving(sdxl_alphas_cumprod().float()), torch.tensor([10, 500, 999])
    x0, eps = normal(2, 3, *CHW)
    alpha, sigma = alpha_sigma("eps", t)
    x_t = invert(Oracle("eps", path, eps), x0, t, steps=10)
    assert x_t.dtype == torch.float64
    torch.testing.assert_close(x_t, alpha * x0 + sigma * eps, rtol=0, atol=1e-5)  # float32 coefficients


class Scaled(nn.Module):
    """A network of one number, in the analytic world's native prediction."""

    def __init__(self, path: GaussianPath, value: float = 0.9) -> None:
        super().__init__()
        self.path, self.inner = path, DATA.denoiser(path)
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        assert self.value.requires_grad and (torch.is_grad_enabled() == self.graph), "where the graph is wanted"
        return self.value * self.inner(x_t, t, cond)

    graph = False


@pytest.mark.parametrize("inverter", [invert, invert_as_published])
def test_no_gradient_comes_out(inverter: Inverter) -> None:
    path, t = PATHS["eps"]()
    x0 = normal(len(t), *CHW).requires_grad_()
    x_t = inverter(Scaled(path), x0, t, steps=2, renoise=1)
    assert not x_t.requires_grad


def test_the_gradient_of_a_probe_is_that_of_its_last_call() -> None:
    path, t = rectified_flow(), number(0.4, 0.8)
    model, x0 = Scaled(path), normal(2, 2, *CHW)
    probe = inversion_probe(model, x0, t, steps=3)
    assert not probe.x_t.requires_grad and not probe.target.requires_grad
    model.graph = True
    model_error(model, probe).sum().backward()
    output = model.inner(probe.x_t.flatten(0, 1), t.repeat_interleave(2), {}).unflatten(0, (2, 2))
    expected = (2 * output * (0.9 * output - probe.target)).flatten(2).mean(2).sum()
    torch.testing.assert_close(model.value.grad, expected, rtol=1e-10, atol=0)


# --- the probe


@every_path
def test_the_probe_compares_with_the_noise_that_the_inversion_implies(name: str) -> None:
    path, t = PATHS[name]()
    x0 = normal(len(t), 2, *CHW)
    cond = {"text": torch.arange(float(len(t)), dtype=torch.float64)}
    probe = inversion_probe(Wavy(path), x0, t, cond, steps=3, renoise=1, average=True)
    alpha, sigma = (scale[..., None] for scale in alpha_sigma(name, t))
    for index in range(len(t)):  # each candidate alone
        for candidate in range(2):
            one = {"text": cond["text"][index : index + 1]}
            alone = invert(
                Wavy(path), x0[index, candidate][None], t[index : index + 1], one, steps=3, renoise=1, average=True
            )
            torch.testing.assert_close(probe.x_t[index, candidate], alone[0], rtol=1e-12, atol=1e-12)
    tau = (probe.x_t - alpha * x0) / sigma
    native = {"eps": tau, "v": alpha * tau - sigma * x0, "x0": x0, "flow": tau - x0, "edm": x0}[name]
    torch.testing.assert_close(probe.target, native, rtol=1e-9, atol=1e-9)
    assert torch.equal(probe.t, t) and torch.equal(probe.weight, torch.ones(len(t), dtype=torch.float64))
    assert probe.cond.keys() == {"text"} and probe.cond["text"] is cond["text"]


@every_path
def test_its_error_is_a_reconstruction_error(name: str) -> None:
    """methods.md 3.5: |tau - eps_hat|^2 = SNR |x0 - x0_hat|^2, whatever the inversion did."""
    path, t = PATHS[name]()
    x0, policy = normal(len(t), 2, *CHW), GaussianData(0.2, 0.8).denoiser(path)
    probe = inversion_probe(DATA.denoiser(path), x0, t, steps=3)
    error = model_error(policy, probe) * path.eps_weight(t)[:, None]  # of eps, from the native one
    flat = probe.x_t.flatten(0, 1), t.repeat_interleave(2)
    guess, _ = policy.posterior(*flat)
    snr = (alpha_sigma(name, t)[0] / alpha_sigma(name, t)[1]).square().reshape(-1, 1)
    expected = snr * (x0 - guess.unflatten(0, (len(t), 2))).square().flatten(2).mean(2)
    # tau divides the rounding of x_t by sigma, 2e-3 and more.
    torch.testing.assert_close(error, expected, rtol=1e-8, atol=1e-10)


def test_either_model_may_invert() -> None:
    path, t = PATHS["flow"]()
    x0, policy, reference = normal(len(t), 2, *CHW), Wavy(path), DATA.denoiser(path)
    by_policy, by_reference = (inversion_probe(model, x0, t, steps=3) for model in (policy, reference))
    assert not torch.allclose(by_policy.x_t, by_reference.x_t)
    calls = len(policy.calls)
    assert calls == 3
    for probe in (by_policy, by_reference):
        assert compare(policy, reference, probe).log_ratio.shape == (len(t), 2)


def test_a_model_with_the_oracle_reports_no_error() -> None:
    path, t = variance_preserving(sdxl_alphas_cumprod()), torch.tensor([0, 50, 999])
    x0, eps = normal(2, 3, 2, *CHW)
    oracle = Oracle("eps", path, eps.flatten(0, 1))
    assert model_error(oracle, inversion_probe(oracle, x0, t, steps=10)).amax() < 1e-20
    official = inversion_probe(oracle, x0, t, steps=10, inverter=invert_as_published)
    assert (model_error(oracle, official)[1] > 0.02).all()  # the published scripts' grid


def test_the_probe_hands_on_every_argument() -> None:
    path, t = variance_preserving(sdxl_alphas_cumprod()), torch.tensor([300, 700])
    x0 = normal(2, 2, *CHW)
    for extra in (
        {"renoise": 2},
        {"renoise": 2, "average": True},
        {"eta": 0.4, "generator": 5},
        {"eta": 0.4, "generator": [5, 6, 7, 8]},
    ):

        def arguments(extra: dict = extra) -> dict:
            made = dict(extra)
            if isinstance(made.get("generator"), int):
                made["generator"] = torch.Generator().manual_seed(made["generator"])
            elif "generator" in made:
                made["generator"] = [torch.Generator().manual_seed(seed) for seed in made["generator"]]
            return made

        probe = inversion_probe(Wavy(path), x0, t, steps=5, **arguments())
        flat = invert(Wavy(path), x0.flatten(0, 1), t.repeat_interleave(2), steps=5, **arguments())
        assert torch.equal(probe.x_t.flatten(0, 1), flat)
        probe = inversion_probe(Wavy(path), x0, t, steps=5, inverter=invert_as_published, **arguments())
        flat = invert_as_published(Wavy(path), x0.flatten(0, 1), t.repeat_interleave(2), steps=5, **arguments())
        assert torch.equal(probe.x_t.flatten(0, 1), flat)


# --- what is refused

TABLE, FLOW, EDM = variance_preserving(sdxl_alphas_cumprod()), rectified_flow(), edm()


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


@pytest.mark.parametrize("steps", [1001, 5000])
def test_the_published_inversion_wants_steps_that_it_has(steps: int) -> None:
    with pytest.raises(ValueError, match=f"at most 1000 steps, got {steps}"):
        invert_as_published(DATA.denoiser(TABLE), normal(1, *CHW), torch.tensor([5]), steps=steps)


def test_the_published_inversion_wants_a_thousand_levels() -> None:
    for path, t in ((fine_table(), torch.tensor([5])), (FLOW, number(0.3))):
        with pytest.raises(ValueError, match="paths of 1000 indices"):
            invert_as_published(DATA.denoiser(path), normal(1, *CHW), t, steps=10)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1)])
def test_one_t_for_each_sample(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="t must hold one time for each of the 2 samples"):
        invert(DATA.denoiser(FLOW), normal(2, *CHW), torch.full(shape, 0.5), steps=2)
    with pytest.raises(ValueError, match="t must hold one time for each of the 2 prompts"):
        inversion_probe(DATA.denoiser(FLOW), normal(2, 3, *CHW), torch.full(shape, 0.5), steps=2)
