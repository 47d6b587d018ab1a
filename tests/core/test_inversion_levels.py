"""The levels that an inversion climbs, what a batch costs, and the noise that eta adds."""

from functools import partial

import pytest
import torch
from torch import Tensor

from diffpref.inversion import Inverter, invert, levels
from diffpref.path import edm, variance_preserving
from examples.official_inversion import invert_as_published
from tests.core.inversion_world import CHW, PATHS, Oracle, Wavy, alpha_sigma, ddim_std, every_form, every_path
from tests.core.numbers import normal, sdxl_alphas_cumprod


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


@every_path
def test_the_labels_of_ddim_are_the_levels_below(name: str) -> None:
    path, t = PATHS[name]()
    model = Wavy(path)
    invert(model, normal(len(t), *CHW), t, steps=3)
    first, second, _ = levels(path, t, 3)
    clean = torch.zeros_like(t) if name == "flow" else first  # only the straight path has a level at the image
    for got, label in zip(model.calls, (clean, first, second), strict=True):
        assert torch.equal(got, label)


@every_path
def test_the_labels_of_renoise_are_the_destinations(name: str) -> None:
    path, t = PATHS[name]()
    model = Wavy(path)
    invert(model, normal(len(t), *CHW), t, steps=2, renoise=2)
    first, last = levels(path, t, 2)
    clean = torch.zeros_like(t) if name == "flow" else first
    for got, label in zip(model.calls, (clean, first, first, first, last, last), strict=True):
        assert torch.equal(got, label)


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


@every_path
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
