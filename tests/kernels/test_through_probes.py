"""Every parameterization and a sampler's step from probe to log-ratio in float32, against float64 and densities."""

import pytest
import torch
from torch import Tensor

from diffpref.errors import compare, errors_of, predict
from diffpref.path import GaussianPath
from diffpref.probe import forward_probe, transition_probe
from diffpref.transition import Ancestral, log_density
from diffpref.types import Errors, Probe
from tests.gaussian import PATHS_AT, GaussianData, GaussianDenoiser

LOG_SNR = torch.tensor([3.0, 2.0, 0.5, -0.5, -2.0, -3.0], dtype=torch.float64)
B, K, CHW = 3, 2, (4, 17, 15)
# Means that differ by 1 % of the data's spread, as after some hundred steps of training.
REFERENCE, POLICY = GaussianData(0.1, 1.1), GaussianData(0.11, 1.101)


def normal(device: str, seed: int) -> Tensor:
    drawn = torch.randn(B, K, *CHW, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(device)


def at(
    name: str, device: str, dtype: torch.dtype = torch.float64, *, steps_below: int = 0
) -> tuple[GaussianPath, Tensor]:
    """The path, and a level for each prompt or the next cleaner one."""
    path, t = PATHS_AT[name](LOG_SNR.to(dtype))
    return path, t[1 - steps_below :: 2].to(device)


def models(path: GaussianPath) -> tuple[GaussianDenoiser, GaussianDenoiser]:
    return POLICY.denoiser(path), REFERENCE.denoiser(path)


def assert_as_float64_says(path: GaussianPath, probe: Probe) -> Errors:
    """The errors at a float32 probe are those of its tensors to 1e-6, and log-ratios vanish where models agree."""
    policy, reference = models(path)
    predictions = [predict(model, probe) for model in (policy, reference)]
    assert probe.target.dtype == predictions[0].dtype == torch.float32
    weight = probe.weight.double()[:, None]
    exact = [weight * (x.double() - probe.target.double()).square().flatten(2).mean(2) for x in predictions]
    errors = compare(policy, reference, probe)
    assert errors.difference.dtype == torch.float32
    for got, wanted in ((errors.policy, exact[0]), (errors.reference, exact[1])):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=0)
    # Relative to the terms of its mean: where policy and reference are equally far away, these cancel.
    terms = (predictions[0] - predictions[1]).double() * (predictions[0] + predictions[1] - 2 * probe.target).double()
    scale = weight * terms.square().flatten(2).mean(2).sqrt() / terms[0, 0].numel() ** 0.5
    assert bool(((errors.difference.double() - (exact[0] - exact[1])).abs() < 1e-6 * scale).all())
    torch.testing.assert_close(errors.log_ratio, errors.difference / -2, rtol=0, atol=0)
    same = errors_of(predictions[0], predictions[0].clone(), probe)
    assert torch.equal(same.log_ratio, torch.zeros_like(same.log_ratio)) and not same.log_ratio.signbit().any()
    return errors


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", PATHS_AT)
def test_forward_noise(device: str, name: str, shared: bool) -> None:
    path, t = at(name, device)
    x0, eps = normal(device, 1), normal(device, 2)
    eps = eps[:, :1].expand_as(x0) if shared else eps
    exact = forward_probe(path, x0, t, eps)
    narrow, times = at(name, device, torch.float32)
    probe = forward_probe(narrow, x0.float(), times, eps.float())
    torch.testing.assert_close(exact.x_t, path.noise(x0, eps, t), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(exact.target, path.target(x0, eps, t), rtol=1e-14, atol=1e-14)
    errors = assert_as_float64_says(narrow, probe)
    wide = [(predict(model, exact) - exact.target).square().flatten(2).mean(2) for model in models(path)]
    torch.testing.assert_close(errors.log_ratio.double(), (wide[1] - wide[0]) / 2, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", PATHS_AT)
def test_a_step_of_the_sampler(device: str, name: str) -> None:
    """D3PO: the log-ratio is that of the step's densities, mean over elements (Yang et al. 2024, eq. 14)."""
    path, t = at(name, device)
    _, s = at(name, device, steps_below=1)
    x_t, step, policy = normal(device, 1), Ancestral()(path, t, s), POLICY.denoiser(path)
    keep, gain, std = (each.reshape(-1, 1, 1, 1, 1) for each in (step.keep, step.gain, step.std))
    x_s = keep * x_t + gain * policy(x_t, t, {}) + std * normal(device, 2)
    (narrow, start), (_, end) = (at(name, device, torch.float32, steps_below=below) for below in (0, 1))
    errors = assert_as_float64_says(narrow, transition_probe(narrow, x_t.float(), x_s.float(), start, end))
    for j in range(K):
        of_policy, of_reference = (
            log_density(step, model(x_t[:, j], t, {}), x_t[:, j], x_s[:, j]) for model in models(path)
        )
        torch.testing.assert_close(errors.log_ratio[:, j].double(), of_policy - of_reference, rtol=1e-3, atol=1e-6)
