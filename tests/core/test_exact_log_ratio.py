"""The test of the whole chain: a probe's log-ratio, summed over the path, is the true log-likelihood ratio.

For optimal denoisers log p(x) - log q(x) = 1/2 int (err_q - err_p) d log SNR, err the expected squared error of eps:
the bound of Kingma et al. 2021, eq. 15, which they attain (Kong et al. 2023). Nothing here is sampled:
  * the error is quadratic in eps, so the mean over eps in {-1, +1} is the mean over N(0, 1);
  * the integrand is analytic and falls like exp(-|log SNR|), so the trapezoid rule converges exponentially.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from diffpref.errors import compare, model_error, prediction_error
from diffpref.path import GaussianPath
from diffpref.probe import forward_probe
from diffpref.types import Errors, Probe
from tests.gaussian import PATHS_AT, GaussianData

STEP = 0.5  # the nearest pole is pi away from the real line: exp(-2 pi^2 / STEP) = 1e-17
LOG_SNR = torch.arange(-44, 45, dtype=torch.float64) * STEP  # what lies beyond +-22 is 1e-8 or less
assert_exact = partial(torch.testing.assert_close, rtol=0, atol=1e-7)

# One prompt, k = 3 candidates, pictures of 2 x 2 with elements all different.
X0 = torch.linspace(-2.4, 3.1, 12, dtype=torch.float64).reshape(1, 3, 2, 2)

REFERENCE = GaussianData(0.0, 1.1)
POLICIES = {"shifted": GaussianData(0.8, 1.1), "narrower": GaussianData(-0.3, 0.6), "wider": GaussianData(0.0, 2.0)}


def quadrature_probe(path: GaussianPath, t: Tensor) -> Probe:
    """Every node with both signs of eps, as prompts of one batch; the weight of each node goes where a user puts it."""
    twice, x0 = torch.cat([t, t]), X0.expand(2 * len(t), *X0.shape[1:])
    signs = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64).expand(len(t), *X0.shape[1:])
    probe = forward_probe(path, x0, twice, torch.cat([signs, -signs]))
    return replace(probe, weight=path.eps_weight(twice) * STEP / 2)


@pytest.mark.parametrize("name", PATHS_AT)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_log_ratio_is_the_log_likelihood_ratio(name: str, policy: GaussianData) -> None:
    path, t = PATHS_AT[name](LOG_SNR)
    errors = compare(policy.denoiser(path), REFERENCE.denoiser(path), quadrature_probe(path, t))
    assert errors.log_ratio.dtype == torch.float64
    exact = policy.log_ratio(REFERENCE, X0[0]).flatten(1).mean(1)  # nats per element
    assert (exact.abs() > 0.01).all()
    assert_exact(errors.log_ratio.sum(0), exact)


@pytest.mark.parametrize("name", PATHS_AT)
def test_the_same_through_the_single_steps(name: str) -> None:
    """prediction_error on predictions made by hand, and model_error of each model, give what compare gives."""
    path, t = PATHS_AT[name](LOG_SNR)
    probe, policy = quadrature_probe(path, t), POLICIES["shifted"]
    by_hand = [
        prediction_error(data.denoiser(path)(probe.x_t, probe.t, {}), probe.target, probe.weight)
        for data in (policy, REFERENCE)
    ]
    by_model = [model_error(data.denoiser(path), probe) for data in (policy, REFERENCE)]
    exact = policy.log_ratio(REFERENCE, X0[0]).flatten(1).mean(1)
    for of_policy, of_reference in (by_hand, by_model):
        assert_exact(Errors(of_policy, of_reference).log_ratio.sum(0), exact)


def test_the_closed_form_is_the_density_of_torch() -> None:
    data = GaussianData(0.8, 1.1)
    expected = torch.distributions.Normal(torch.tensor(0.8).double(), torch.tensor(1.1).double()).log_prob(X0)
    torch.testing.assert_close(data.log_density(X0), expected, rtol=0, atol=1e-6)  # 0.8 and 1.1 there are float32
