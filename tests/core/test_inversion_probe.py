"""The probe of an inversion, and its types and gradients."""

import pytest
import torch
from torch import Tensor, nn

from diffpref.errors import compare, model_error
from diffpref.inversion import Inverter, invert
from diffpref.path import GaussianPath, rectified_flow, variance_preserving
from diffpref.probe import inversion_probe
from diffpref.types import Cond
from examples.official_inversion import invert_as_published
from tests.core.inversion_world import CHW, DATA, PATHS, Oracle, Wavy, alpha_sigma, every_path
from tests.core.numbers import normal, number, sdxl_alphas_cumprod
from tests.gaussian import GaussianData


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
