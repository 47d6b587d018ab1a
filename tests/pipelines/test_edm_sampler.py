"""EDM's sampler against diffusers' levels and the analytic world, its images, and pipelines on the disk."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler, UNet2DModel
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from diffpref.path import edm
from diffpref.pipelines.edm import EDMPipeline, NoiseSchedule, noise_schedule, pil_pictures
from tests.gaussian import GaussianData
from tests.small_edm import CLASSES, PATCH, SIGMA_DATA, SIZE, save_pipeline, small_pipeline


def over(sigma: Tensor) -> Tensor:
    return sigma.view(-1, 1, 1, 1)


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
