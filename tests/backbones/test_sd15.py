"""The SD 1.x and 2.x family against diffusers itself: path, network call, prompts, pictures, LoRA files."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
)

from diffpref.backbones import Checkpoint, Encoder, Times
from diffpref.backbones.adapters import trainable
from diffpref.backbones.adapters.lora import attach_lora
from diffpref.backbones.adapters.reference import AdapterOff
from diffpref.backbones.sd15 import SD15, SD15Network
from diffpref.backbones.unet import IndexTimes
from diffpref.transition import sample_chain
from diffpref.types import Backbone
from tests.small_sampling import latents_of
from tests.small_sd15 import WIDTH, save_pipeline
from tests.small_sdxl import SCHEDULE, SIZE

CPU = torch.device("cpu")
PROMPTS = ["red cat", "a dog", "two cats"]
INDICES = torch.tensor([0, 1, 500, 998, 999])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(str(save_pipeline(tmp_path_factory.mktemp("sd15"))))


@pytest.fixture
def with_scheduler(tmp_path: Path) -> Callable[[SchedulerMixin], Checkpoint]:
    """A folder with nothing but this scheduler."""

    def make(scheduler: SchedulerMixin) -> Checkpoint:
        scheduler.save_pretrained(tmp_path / "scheduler")
        return Checkpoint(str(tmp_path))

    return make


def stock(checkpoint: Checkpoint) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint.source)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def a_batch() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    cond = SD15(Checkpoint("")).group_cond({"prompt_embeds": normal(3, 8, WIDTH, seed=1)}, SIZE)
    return normal(3, 4, 8, 8), torch.tensor([0, 500, 999]), cond


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("cls", [DDPMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_the_path_is_that_of_any_scheduler_with_betas(
    with_scheduler: Callable[..., Checkpoint], cls: Any, prediction: str
) -> None:
    path = SD15(with_scheduler(cls(**SCHEDULE, prediction_type=prediction))).path
    trained = DDPMScheduler(**SCHEDULE, prediction_type=prediction)
    x0, eps = normal(5, 4, 8, 8), normal(5, 4, 8, 8, seed=1)
    torch.testing.assert_close(path.noise(x0, eps, INDICES), trained.add_noise(x0, eps, INDICES))
    expected = eps if prediction == "epsilon" else trained.get_velocity(x0, eps, INDICES)
    torch.testing.assert_close(path.target(x0, eps, INDICES), expected)


@pytest.mark.parametrize("cls", [DDPMScheduler, EulerDiscreteScheduler])
def test_a_terminal_snr_of_zero_is_kept(with_scheduler: Callable[..., Checkpoint], cls: Any) -> None:
    """Against Lin et al. 2024, algorithm 1: the roots are shifted to end at 0 and scaled to start where they did."""
    settings = {**SCHEDULE, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    path = SD15(with_scheduler(cls(**settings))).path
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    roots = (1 - betas).cumprod(0).sqrt()
    rescaled = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    # float32, a product of 1000.
    torch.testing.assert_close(path.alpha(torch.arange(1000)).double(), rescaled, rtol=1e-3, atol=1e-5)
    x0, eps, last = normal(1, 4, 8, 8), normal(1, 4, 8, 8, seed=1), torch.tensor([999])
    # Noise alone, and a velocity that is the picture's: nothing divides by zero.
    assert torch.equal(path.noise(x0, eps, last), eps) and torch.equal(path.target(x0, eps, last), -x0)
    torch.testing.assert_close(path.to_x0(-x0, eps, last), x0)
    step = SD15.step(path, last, torch.tensor([800]))
    assert torch.stack([step.keep, step.gain, step.std]).isfinite().all()


EDM_LIKE = "has no beta_schedule. EDM and flow variants"


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (EDMEulerScheduler(), f"its scheduler EDMEulerScheduler {EDM_LIKE}"),
        (FlowMatchEulerDiscreteScheduler(), f"its scheduler FlowMatchEulerDiscreteScheduler {EDM_LIKE}"),
        (DDPMScheduler(num_train_timesteps=500), "the scheduler has 500 levels, not 1000"),
        (DPMSolverMultistepScheduler(prediction_type="flow_prediction"), "prediction must be one of .*flow_prediction"),
        (DDPMScheduler(rescale_betas_zero_snr=True), "at a terminal SNR of zero epsilon says nothing"),
    ],
    ids=["edm", "flow", "levels", "prediction", "zero snr"],
)
def test_a_scheduler_of_another_path_is_refused(
    with_scheduler: Callable[..., Checkpoint], scheduler: SchedulerMixin, message: str
) -> None:
    checkpoint = with_scheduler(scheduler)
    with pytest.raises(ValueError, match=f"{checkpoint.source}: .*{message}"):
        _ = SD15(checkpoint).path


def test_a_table_that_ddpm_does_not_know_is_refused(with_scheduler: Callable[..., Checkpoint]) -> None:
    checkpoint = with_scheduler(DDPMScheduler())
    config = Path(checkpoint.source) / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"beta_schedule": "jagged"}))
    with pytest.raises(ValueError, match=f"{checkpoint.source}: jagged is not implemented"):
        _ = SD15(checkpoint).path


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (Times(timestep_density="logit_normal"), "timestep_density logit_normal is not for a path of indices"),
        (Times(timestep_density="log_normal"), "timestep_density log_normal is not for a path of indices"),
        (Times(timestep_shift=3.0), r"timestep_shift 3\.0 is for flow models"),
    ],
)
def test_times_of_other_paths_are_refused(base: Checkpoint, times: Times, message: str) -> None:
    assert SD15.open(base, Times(timestep_density="uniform"), SIZE).times == IndexTimes(0, 999)
    with pytest.raises(ValueError, match=message):
        SD15.open(base, times, SIZE)


def test_the_backbone_is_the_unet(base: Checkpoint) -> None:
    network = SD15(base).load_network(torch.float32).eval()
    backbone = SD15Network(network, SD15(base).path)
    assert isinstance(backbone, Backbone)
    x_t, t, cond = a_batch()
    with torch.no_grad():
        predicted = backbone(x_t, t, cond)
        for place in range(3):
            one = slice(place, place + 1)
            alone = network(x_t[one], t[place], cond["prompt_embeds"][one]).sample
            # float32, batches of one and of three.
            torch.testing.assert_close(predicted[one], alone, rtol=1e-4, atol=1e-5)


def test_chains_run_on_their_levels(base: Checkpoint) -> None:
    backbone = SD15Network(SD15(base).load_network(torch.float32), SD15(base).path)
    times = SD15(base).chain_times(4)
    assert times.tolist() == [999, 799, 599, 400, 200]
    x, _, cond = a_batch()
    chain = sample_chain(backbone, x, times, cond, rule=SD15.step, generator=torch.Generator().manual_seed(0))
    assert chain.latents.shape == (5, 3, 4, 8, 8) and chain.log_density.isfinite().all()


def test_prompts_are_encoded_as_the_pipeline_does(base: Checkpoint) -> None:
    encoder = SD15(base).load_encoder(CPU)
    assert isinstance(encoder, Encoder)
    embeds, negative = stock(base).encode_prompt("red cat", CPU, 1, do_classifier_free_guidance=True)
    ours = encoder.encode_prompts(["red cat", "a dog"])
    assert set(ours) == {"prompt_embeds"}
    torch.testing.assert_close(ours["prompt_embeds"][:1], embeds)
    torch.testing.assert_close(SD15(base).empty_prompt(encoder)["prompt_embeds"], negative)


def test_pictures_are_encoded_in_the_networks_units(base: Checkpoint) -> None:
    encoder = SD15(base).load_encoder(CPU)
    pictures = normal(1, 3, SIZE, SIZE).clamp(-1, 1)
    ours = encoder.encode_pictures(pictures, [torch.Generator().manual_seed(5)])
    with torch.no_grad():
        posterior = encoder.vae.encode(pictures).latent_dist
    # The latents' scale is small_vae's 0.5.
    torch.testing.assert_close(ours, (posterior.mean + posterior.std * normal(4, 8, 8, seed=5)) * 0.5)


@pytest.mark.parametrize(
    "settings", [{}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}], ids=["epsilon", "v"]
)
def test_samples_are_those_of_the_stock_pipeline(
    base: Checkpoint, tmp_path: Path, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = Checkpoint(str(save_pipeline(tmp_path / "v", **settings))) if settings else base
    with caplog.at_level(logging.WARNING, logger="diffusers"):
        encoder, network = SD15(checkpoint).load_encoder(CPU), SD15(checkpoint).load_network(torch.float32)
        decoder = SD15(checkpoint).load_decoder(network, CPU)
    # diffusers warns where a safety checker is left out against the pipeline's own settings.
    assert not caplog.records and decoder.pipeline.safety_checker is None
    given = encoder.encode_prompts(PROMPTS), SD15(checkpoint).empty_prompt(encoder)
    options: dict[str, Any] = {"resolution": SIZE, "seeds": [7, 8, 9], "steps": 2, "batch_size": 2}
    pictures = decoder.sample(*given, guidance_scale=4.0, **options)
    latents = latents_of(decoder, *given, {**options, "guidance_scale": 4.0}, 2)
    assert [p.tobytes() for p in decoder.decode(latents)] == [p.tobytes() for p in pictures[:2]]
    pipeline = stock(checkpoint)
    for place, prompt in enumerate(PROMPTS):
        options = {"num_inference_steps": 2, "guidance_scale": 4.0, "height": SIZE, "width": SIZE}
        (expected,) = pipeline(prompt, generator=torch.Generator().manual_seed(7 + place), **options).images
        levels = torch.tensor(list(expected.tobytes())) - torch.tensor(list(pictures[place].tobytes()))
        # Batches of two and of one round differently.
        assert levels.abs().max() <= 1


def test_a_safety_checker_is_not_even_read(base: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_pipeline(tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    # As SD 1.5's index; the folders are not there.
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index | {"requires_safety_checker": True}))
    checkpoint = Checkpoint(str(folder))
    with caplog.at_level(logging.WARNING, logger="diffusers"):
        SD15(checkpoint).load_encoder(CPU)
        decoder = SD15(checkpoint).load_decoder(SD15(checkpoint).load_network(torch.float32), CPU)
    assert decoder.pipeline.safety_checker is None and not caplog.records


def test_lora_reaches_the_stock_pipeline(base: Checkpoint, tmp_path: Path) -> None:
    network = SD15(base).load_network(torch.float32)
    policy = SD15Network(network, SD15(base).path)
    inputs = a_batch()
    before = policy(*inputs)
    attach_lora(network, 4, SD15.lora_targets, seed=0)
    for place, parameter in enumerate(trainable(network)):
        parameter.data += 0.3 * normal(*parameter.shape, seed=place)
    after = policy(*inputs)
    assert (after - before).abs().max() > 1e-2
    assert torch.equal(AdapterOff(policy, network)(*inputs), before)
    SD15(Checkpoint("")).save_lora(network, tmp_path)
    pipeline = stock(base)
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(SD15Network(pipeline.unet, policy.path)(*inputs), after)
