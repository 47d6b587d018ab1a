"""EDM's preconditioning against the paper and diffusers, and its sampler against the analytic world."""

import math
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler
from torch import Tensor

from diffpref.pipelines.edm import EDMPipeline, denoise, guided_denoise
from tests.small_edm import PATCH, SIGMA_DATA, SIZE, small_pipeline, small_unet

SIGMAS = torch.tensor([0.002, 0.1, 0.7, 3.0, 80.0], dtype=torch.float64)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def over(sigma: Tensor) -> Tensor:
    return sigma.view(-1, 1, 1, 1)


class Recorder(torch.nn.Module):
    """A network that returns a fixed answer and keeps what it was asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=answer.dtype))
        self.answer = answer
        self.asked: dict[str, Tensor] = {}

    def forward(self, x: Tensor, c_noise: Tensor, return_dict: bool, **conditions: Tensor) -> tuple[Tensor]:
        self.asked = {"x": x, "c_noise": c_noise, **conditions}
        return (self.answer,)


# The preconditioning.


def test_the_coefficients_where_noise_equals_data() -> None:
    """At sigma = sigma_data: c_in = 1 / (sqrt(2) sigma), c_skip = 1/2, c_out = sigma / sqrt(2)."""
    x, answer = normal(1, 1, 2, 2), normal(1, 1, 2, 2, seed=1)
    network = Recorder(answer)
    out = denoise(network, x, torch.tensor([0.5], dtype=torch.float64), None, 0.5)
    torch.testing.assert_close(network.asked["x"], x * math.sqrt(2))
    torch.testing.assert_close(out, 0.5 * x + 0.35355339059327373 * answer)
    assert network.asked["c_noise"].item() == pytest.approx(-0.17328679513998632)
    assert "class_labels" not in network.asked


def test_the_weighted_error_is_that_of_the_network_itself() -> None:
    """lambda(sigma) |D - y|^2 = |F - F_target|^2 with F_target of unit variance (Karras et al. 2022, eq. 8 and app. B).

    F_target = (sigma / sigma_data y - sigma_data n) / sqrt(sigma^2 + sigma_data^2), from x = y + sigma n by hand."""
    y, n, answer = (normal(5, 4, 3, 3, seed=seed) for seed in range(3))
    s, sd = over(SIGMAS), SIGMA_DATA
    out = denoise(Recorder(answer), y + s * n, SIGMAS, None, sd)
    target = (s / sd * y - sd * n) / (s**2 + sd**2).sqrt()
    weight = (s**2 + sd**2) / (s * sd) ** 2
    # y + 80 n leaves ten digits of y.
    torch.testing.assert_close(weight * (out - y) ** 2, (answer - target) ** 2, rtol=1e-6, atol=1e-9)


def test_the_input_has_unit_variance() -> None:
    x = (SIGMAS.square() + SIGMA_DATA**2).sqrt()
    network = Recorder(torch.zeros(5, 1, 1, 1, dtype=torch.float64))
    denoise(network, over(x), SIGMAS, None, SIGMA_DATA)
    torch.testing.assert_close(network.asked["x"], torch.ones(5, 1, 1, 1, dtype=torch.float64))


def test_the_preconditioning_is_that_of_diffusers() -> None:
    x, labels = normal(5, 4, 8, 8), torch.tensor([0, 1, 2, 3, 3])
    unet, scheduler = small_unet().double(), EDMEulerScheduler(sigma_data=SIGMA_DATA)
    with torch.no_grad():
        ours = denoise(unet, x, SIGMAS, labels, SIGMA_DATA)
        for place, sigma in enumerate(SIGMAS):
            one = slice(place, place + 1)
            c_noise = scheduler.precondition_noise(sigma)
            inner = unet(scheduler.precondition_inputs(x[one], sigma), c_noise, class_labels=labels[one]).sample
            torch.testing.assert_close(ours[one], scheduler.precondition_outputs(x[one], inner, sigma))


def test_without_noise_the_picture_stays() -> None:
    x, answer = normal(2, 1, 4, 4), normal(2, 1, 4, 4, seed=1)
    sigma = torch.tensor([1e-6, 1e-9], dtype=torch.float64)
    out = denoise(Recorder(answer), x, sigma, None, SIGMA_DATA)
    # c_out is sigma itself there.
    torch.testing.assert_close(out, x + over(sigma) * answer, rtol=0, atol=1e-11)


def test_half_precision_is_the_networks_alone() -> None:
    x = normal(2, 4, 8, 8, dtype=torch.float32)
    unet, sigma, labels = small_unet(), torch.tensor([0.1, 20.0]), torch.tensor([0, 3])
    with torch.no_grad():
        wide = denoise(unet, x, sigma, labels, SIGMA_DATA)
        half = denoise(unet.bfloat16(), x, sigma, labels, SIGMA_DATA)
    assert half.dtype == torch.float32
    # bfloat16 has eight bits; c_out is at most 0.7.
    torch.testing.assert_close(half, wide, rtol=0.05, atol=0.05)
    assert small_pipeline().to(torch.bfloat16)(2, num_inference_steps=2, output_type="pt").images.dtype == torch.float32


# Guidance and classes.


def test_guidance_is_linear_in_its_scale() -> None:
    unet, x, labels = small_unet().double(), normal(5, 4, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    with torch.no_grad():
        named = denoise(unet, x, SIGMAS, labels, SIGMA_DATA)
        unnamed = denoise(unet, x, SIGMAS, torch.full((5,), 3), SIGMA_DATA)
        assert torch.equal(guided_denoise(unet, x, SIGMAS, labels, SIGMA_DATA, 1.0), named)
        for scale in (0.0, 0.5, 4.0):
            guided = guided_denoise(unet, x, SIGMAS, labels, SIGMA_DATA, scale)
            torch.testing.assert_close(guided, (1 - scale) * unnamed + scale * named)
    assert not torch.allclose(named[0], unnamed[0], atol=1e-4)


@pytest.mark.parametrize(("scale", "rows"), [(1.0, 3), (2.0, 6)])
def test_no_guidance_costs_no_second_branch(scale: float, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, sizes = small_pipeline(), []
    run = pipeline.unet.forward
    monkeypatch.setattr(pipeline.unet, "forward", lambda x, *a, **k: sizes.append(len(x)) or run(x, *a, **k))
    pipeline(class_labels=[0, 1, 2], num_inference_steps=4, guidance_scale=scale, output_type="latent")
    # Two calls a step, the last one.
    assert sizes == [rows] * 7


def test_pictures_without_classes_are_those_of_the_last_label() -> None:
    pipeline = small_pipeline()
    options: dict[str, Any] = {"num_inference_steps": 3, "output_type": "pt"}
    blank = pipeline(2, generator=torch.Generator().manual_seed(0), **options).images
    last = pipeline(class_labels=[3, 3], generator=torch.Generator().manual_seed(0), **options).images
    named = pipeline(class_labels=[0, 3], generator=torch.Generator().manual_seed(0), **options).images
    assert torch.equal(blank, last) and blank.shape == (2, 1, SIZE, SIZE)
    assert not torch.allclose(named[0], last[0], atol=1e-3)
    torch.testing.assert_close(named[1], last[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_labels": [0, 4]}, "class_labels must be from 0 to 3, which stands for no class; got 4"),
        ({"class_labels": [-1]}, "got -1"),
        ({"output_type": "np"}, "output_type must be pil, pt or latent, got 'np'"),
        ({"num_inference_steps": 0}, "num_inference_steps must be 1 or above, got 0"),
        ({"batch_size": 2, "generator": [torch.Generator()]}, "one for each of the 2 pictures, not 1"),
    ],
)
def test_calls_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_pipeline()(**options)


def test_classes_for_a_network_without() -> None:
    with pytest.raises(ValueError, match="class_labels were given, but this network has no classes"):
        small_pipeline(classes=None)(class_labels=[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 4}, "16 .grey. or 48 .RGB. channels in and out for patch_size 4, got 4 in and 4 out"),
        ({"classes": ["bag", "boot"]}, "classes must be 3 different names"),
        ({"classes": ["bag", "boot", "Bag"]}, "classes must be 3 different names"),
        ({"scheduler": EDMEulerScheduler(prediction_type="v_prediction")}, "prediction_type must be epsilon for EDM"),
        ({"scheduler": EDMEulerScheduler(sigma_schedule="exponential")}, "sigma_schedule must be karras for EDM"),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    parts = {"unet": small_unet(), "scheduler": EDMEulerScheduler(), "patch_size": PATCH}
    with pytest.raises(ValueError, match=message):
        EDMPipeline(**(parts | changes))


def test_a_network_without_one_side() -> None:
    unet = small_unet()
    unet.register_to_config(sample_size=(8, 4))
    with pytest.raises(ValueError, match=r"sample_size must be one number, its side, got \(8, 4\)"):
        EDMPipeline(unet, EDMEulerScheduler(), PATCH)
