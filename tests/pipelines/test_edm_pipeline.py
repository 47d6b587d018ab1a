"""EDM's preconditioning against the paper and diffusers, and its sampler against the analytic world."""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler, UNet2DModel
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from diffpref.path import edm
from diffpref.pipelines.edm import EDMPipeline, NoiseSchedule, denoise, guided_denoise, noise_schedule, pil_pictures
from tests.gaussian import GaussianData
from tests.small_edm import CLASSES, PATCH, SIGMA_DATA, SIZE, save_pipeline, small_pipeline, small_unet

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


# The sampler.


def test_levels_are_those_of_diffusers() -> None:
    scheduler = EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0, rho=5.0)
    scheduler.set_timesteps(9)
    ours = noise_schedule(scheduler.config).levels(9)
    torch.testing.assert_close(torch.tensor(ours), scheduler.sigmas[:-1])
    assert ours[0] == pytest.approx(50) and ours[-1] == pytest.approx(0.01)
    assert NoiseSchedule(0.5, 0.002, 80.0, 7.0).levels(1) == pytest.approx([80.0])


def gaussian_unet(unet: UNet2DModel, data: GaussianData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make D the exact denoiser of the data: undo the preconditioning of its input, and that of its output."""
    denoiser, sd = data.denoiser(edm()), SIGMA_DATA

    def forward(x: Tensor, c_noise: Tensor, return_dict: bool) -> tuple[Tensor]:
        sigma = (4 * c_noise).exp()
        root = (over(sigma) ** 2 + sd**2).sqrt()
        x = x * root
        return ((denoiser(x, sigma, {}) - (sd / root) ** 2 * x) * root / (over(sigma) * sd),)

    monkeypatch.setattr(unet, "forward", forward)


def test_the_sampler_follows_the_flow_at_second_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """On N(m, s^2) the flow from sigma_max to 0 is m + s / sqrt(s^2 + sigma_max^2) (x - m), solved exactly."""
    data = GaussianData(0.3, 0.6)
    # The last step, Euler's from sigma_min, leaves sigma_min^2 / (2 s^2): out of the way at 1e-5.
    pipeline = small_pipeline(classes=None, sigma_min=1e-5)
    pipeline.unet.double()
    gaussian_unet(pipeline.unet, data, monkeypatch)
    start = 80 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)).double()
    exact = pixel_shuffle(data.flow_inverse(edm(), start, torch.full((2,), 80.0, dtype=torch.float64)), PATCH)
    errors = []
    for steps in (50, 100, 200):
        generator = torch.Generator().manual_seed(3)
        found = pipeline(2, num_inference_steps=steps, generator=generator, output_type="pt").images
        assert found.dtype == torch.float64
        errors.append((found - exact).abs().max().item())
    assert errors[-1] < 1e-3
    # Half the step, a quarter of the error; the next order adds five percent at these steps.
    assert [a / b for a, b in zip(errors, errors[1:], strict=False)] == pytest.approx([4, 4], rel=0.1)


def test_seeds_do_not_depend_on_the_batch() -> None:
    pipeline = small_pipeline()

    def draw(labels: list[int], seeds: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        options: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "pt"}
        return pipeline(class_labels=labels, generator=generators, **options).images

    together = draw([0, 1, 2], [7, 8, 9])
    for place, (label, seed) in enumerate([(0, 7), (1, 8), (2, 9)]):
        # float32, batches of one and of three.
        torch.testing.assert_close(together[place : place + 1], draw([label], [seed]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], draw([0], [8])[0], atol=1e-2)


def test_latents_are_the_pictures_in_patches() -> None:
    pipeline = small_pipeline(channels=3)
    images = {
        kind: pipeline(2, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type=kind).images
        for kind in ("latent", "pt", "pil")
    }
    assert images["latent"].shape == (2, 12, 8, 8) and images["pt"].shape == (2, 3, SIZE, SIZE)
    assert torch.equal(pixel_shuffle(images["latent"], PATCH), images["pt"])
    assert [picture.tobytes() for picture in images["pil"]] == [p.tobytes() for p in pil_pictures(images["pt"])]
    assert {picture.mode for picture in images["pil"]} == {"RGB"}


def test_pictures_from_minus_1_to_1() -> None:
    (grey,) = pil_pictures(torch.tensor([[[[-1.0, 0.0], [1.0, 7.0]]]]))
    assert grey.mode == "L" and list(grey.tobytes()) == [0, 128, 255, 255]
    (red,) = pil_pictures(torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1))
    assert red.mode == "RGB" and red.getpixel((0, 0)) == (255, 0, 0)


def test_a_tuple_instead_of_an_output() -> None:
    (images,) = small_pipeline()(1, num_inference_steps=1, return_dict=False)
    assert images[0].size == (SIZE, SIZE)


# Saving and loading.


@pytest.fixture
def warnings_of_diffusers(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.WARNING)
    yield caplog.records
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)


@pytest.mark.parametrize("classes", [CLASSES, ("cat", "dog"), None])
def test_a_saved_pipeline_is_the_same_without_warnings(
    tmp_path: Path, classes: tuple[str, ...] | None, warnings_of_diffusers: list[logging.LogRecord]
) -> None:
    saved = small_pipeline(classes=classes, sigma_max=50.0)
    saved.save_pretrained(tmp_path)
    loaded = EDMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert not warnings_of_diffusers
    assert loaded.config["classes"] == (list(classes) if classes else None) and loaded.config["patch_size"] == PATCH
    assert loaded.scheduler.config.sigma_data == SIGMA_DATA
    pictures = [
        pipeline(2, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for pipeline in (saved, loaded)
    ]
    assert torch.equal(*pictures)


def test_a_folder_from_before_classes_had_names(tmp_path: Path) -> None:
    index = save_pipeline(tmp_path) / "model_index.json"
    entries = json.loads(index.read_text())
    del entries["classes"]
    index.write_text(json.dumps(entries))
    assert EDMPipeline.from_pretrained(tmp_path).config["classes"] is None
