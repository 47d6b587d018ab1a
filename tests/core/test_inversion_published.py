"""The published scripts' inversion (examples/official_inversion.py) against diffusers' loop."""

from functools import partial

import pytest
import torch

from diffpref.path import variance_preserving
from examples.official_inversion import invert_as_published
from tests.core.inversion_world import (
    CHW,
    DATA,
    FLOW,
    TABLE,
    Oracle,
    Wavy,
    alpha_sigma,
    ddim_std,
    every_form,
    fine_table,
)
from tests.core.numbers import assert_exact, normal, number, sdxl_alphas_cumprod

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


@pytest.mark.parametrize("steps", [1001, 5000])
def test_the_published_inversion_wants_steps_that_it_has(steps: int) -> None:
    with pytest.raises(ValueError, match=f"at most 1000 steps, got {steps}"):
        invert_as_published(DATA.denoiser(TABLE), normal(1, *CHW), torch.tensor([5]), steps=steps)


def test_the_published_inversion_wants_a_thousand_levels() -> None:
    for path, t in ((fine_table(), torch.tensor([5])), (FLOW, number(0.3))):
        with pytest.raises(ValueError, match="paths of 1000 indices"):
            invert_as_published(DATA.denoiser(path), normal(1, *CHW), t, steps=10)
