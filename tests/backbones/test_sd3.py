"""The SD3 family against diffusers itself: path, times, network call, prompts, pictures, LoRA files."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin

from diffpref.backbones import Checkpoint, Times
from diffpref.backbones.flow import STEPS, FlowTimes
from diffpref.backbones.sd3 import SD3, SD3Network
from diffpref.path import rectified_flow
from diffpref.transition import sample_chain
from diffpref.types import Backbone
from tests.small_sampling import latents_of
from tests.small_sd3 import SHIFT
from tests.small_sdxl import SIZE

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {"resolution": SIZE, "seeds": [7, 8, 9], "steps": 3, "batch_size": 2}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def another(sd3: Checkpoint, folder: Path, scheduler: SchedulerMixin) -> Checkpoint:
    """The pipeline with another scheduler."""
    shutil.copytree(sd3.source, folder / "base")
    scheduler.save_pretrained(folder / "base" / "scheduler")
    return Checkpoint(str(folder / "base"))


def a_batch() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    cond = {"prompt_embeds": normal(3, 9, 32, seed=1), "pooled": normal(3, 32, seed=2)}
    return normal(3, 4, 8, 8), torch.tensor([0.001, 0.5, 0.999]), SD3(Checkpoint("")).group_cond(cond, SIZE)


def test_the_path_is_the_schedulers(sd3: Checkpoint) -> None:
    path, scheduler = SD3(sd3).path, FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    x0, eps, places = normal(4, 4, 8, 8), normal(4, 4, 8, 8, seed=1), [0, 10, 500, 999]
    t = scheduler.sigmas[places]
    torch.testing.assert_close(path.noise(x0, eps, t), scheduler.scale_noise(x0, scheduler.timesteps[places], eps))
    assert torch.equal(scheduler.timesteps, STEPS * scheduler.sigmas)
    # With one step, the sampler goes to its estimate of the clean picture, from the noisiest of its levels.
    scheduler.set_timesteps(1)
    x, v = normal(1, 4, 8, 8), normal(1, 4, 8, 8, seed=1)
    (clean,) = scheduler.step(v, scheduler.timesteps[0], x, return_dict=False)
    torch.testing.assert_close(path.to_x0(v, x, scheduler.sigmas[:1]), clean)
    # By hand: the velocity points from the picture to the noise.
    quarter = torch.full((4,), 0.25)
    x_t = path.noise(x0, eps, quarter)
    torch.testing.assert_close(x_t - 0.25 * path.target(x0, eps, quarter), x0)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (DDPMScheduler(), "its scheduler is a DDPMScheduler of 1000 levels; SD3 needs a FlowMatch"),
        (FlowMatchEulerDiscreteScheduler(num_train_timesteps=100), "FlowMatchEulerDiscreteScheduler of 100 levels"),
    ],
    ids=["ddpm", "levels"],
)
def test_a_scheduler_of_another_path_is_refused(
    sd3: Checkpoint, tmp_path: Path, scheduler: SchedulerMixin, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _ = SD3(another(sd3, tmp_path, scheduler)).path


def test_times_are_resolved_from_the_pipeline(sd3: Checkpoint) -> None:
    times = SD3.open(sd3, Times(), SIZE).times
    assert times == FlowTimes("logit_normal", 0.0, 1.0, SHIFT)
    given = Times(timestep_density="uniform", timestep_shift=1.5)
    assert SD3.open(sd3, given, SIZE).times == FlowTimes("uniform", shift=1.5)
    ranged = SD3.open(sd3, Times(t_min=0.2, timestep_shift=1.5), SIZE).times
    assert ranged == FlowTimes(shift=1.5, low=0.2, high=0.999)
    assert SD3.open(sd3, Times(timesteps=(0.5,), timestep_shift=1.0), SIZE).times == FlowTimes(only=(0.5,))


def test_a_shift_by_resolution_is_left_to_the_user(sd3: Checkpoint, tmp_path: Path) -> None:
    dynamic = another(sd3, tmp_path, FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    with pytest.raises(ValueError, match="use_dynamic_shifting.*set timestep_shift"):
        SD3.open(dynamic, Times(), SIZE)
    assert SD3.open(dynamic, Times(timestep_shift=2.0), SIZE).times.shift == 2.0


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (Times(timestep_density="log_normal"), "log_normal and p_mean are EDM's"),
        (Times(p_mean=-1.2), "log_normal and p_mean are EDM's"),
        (Times(logit_std=0.0), r"logit_std must be above 0, got 0\.0"),
        (Times(timestep_shift=-1.0), r"timestep_shift must be above 0, got -1\.0"),
        (Times(t_max=999), r"t_max must be in \[0\.001, 0\.999\] on this backbone, got 999"),
        (Times(zero_terminal_snr=True), "zero_terminal_snr is for SD 1.5 and SDXL, whose levels are a table"),
    ],
)
def test_times_that_cannot_work_are_refused(sd3: Checkpoint, times: Times, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SD3.open(sd3, times, SIZE)


def logit_normal(t: torch.Tensor, mean: float, std: float, shift: float) -> torch.Tensor:
    """P(T <= t): the shift adds ln(shift) to the logit, so T is logit-normal again."""
    return torch.special.ndtr((t.logit() - mean - torch.tensor(shift).log()) / std)


def shifted_uniform(t: torch.Tensor, mean: float, std: float, shift: float) -> torch.Tensor:
    return t / (shift - (shift - 1) * t)


@pytest.mark.parametrize(("mean", "std", "shift"), [(0.0, 1.0, 1.0), (0.0, 1.0, 3.0), (-0.5, 0.6, 2.0)])
@pytest.mark.parametrize("cdf", [logit_normal, shifted_uniform])
def test_times_have_the_closed_forms_distribution(cdf: Any, mean: float, std: float, shift: float) -> None:
    times = FlowTimes("uniform" if cdf is shifted_uniform else "logit_normal", mean, std, shift)
    generator, path, count = torch.Generator().manual_seed(0), rectified_flow(), 2000
    drawn = torch.stack([times.draw(generator) for _ in range(count)]).double().sort().values
    # Kolmogorov and Smirnov's statistic, at a level of 1 %; the clipped ends are far smaller.
    distance = (cdf(drawn, mean, std, shift) - torch.arange(1, count + 1) / count).abs().max()
    assert distance < 1.63 / count**0.5 + 1e-3
    path.check_times(drawn)


def test_times_stay_off_both_ends() -> None:
    wide = FlowTimes("logit_normal", std=100.0)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([wide.draw(generator) for _ in range(200)])
    assert drawn.min() == pytest.approx(1e-3) and drawn.max() == pytest.approx(1 - 1e-3)
    assert drawn.dtype == torch.float32 and torch.equal(SD3(Checkpoint("")).time_fraction(drawn), drawn)
    assert rectified_flow().snr(drawn).log().isfinite().all()


def test_the_backbone_is_the_transformer(sd3: Checkpoint) -> None:
    network = SD3(sd3).load_network(torch.float32).eval()
    backbone = SD3Network(network, SD3(sd3).path)
    assert isinstance(backbone, Backbone)
    x_t, t, cond = a_batch()
    with torch.no_grad():
        predicted = backbone(x_t, t, cond)
        for place, timestep in enumerate((1.0, 500.0, 999.0)):
            one = slice(place, place + 1)
            alone = network(
                x_t[one],
                timestep=torch.tensor([timestep]),
                encoder_hidden_states=cond["prompt_embeds"][one],
                pooled_projections=cond["pooled"][one],
            ).sample
            # float32, batches of one and of three.
            torch.testing.assert_close(predicted[one], alone, rtol=1e-4, atol=1e-5)


def test_following_the_backbone_is_sampling_without_guidance(sd3: Checkpoint) -> None:
    """Sign, scale and times of the velocity in one: Euler's steps with our backbone are the stock sampler's."""
    encoder, network = SD3(sd3).load_encoder(CPU), SD3(sd3).load_network(torch.float32)
    cond, backbone = encoder.encode_prompts(["red cat"]), SD3Network(network, SD3(sd3).path)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(3)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        for here, there in zip(scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
            x = x + (there - here) * backbone(x, here.expand(1), cond)
    decoder, empty = SD3(sd3).load_decoder(network, CPU), SD3(sd3).empty_prompt(encoder)
    torch.testing.assert_close(latents_of(decoder, cond, empty, {**OPTIONS, "guidance_scale": 1.0}, 1), x)


def test_chains_run_on_their_levels(sd3: Checkpoint) -> None:
    backbone = SD3Network(SD3(sd3).load_network(torch.float32), SD3(sd3).path)
    times = SD3(sd3).chain_times(4)
    assert times.tolist() == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2]) and times.dtype == torch.float32
    x, _, cond = a_batch()
    chain = sample_chain(backbone, x, times, cond, rule=SD3.step, generator=torch.Generator().manual_seed(0))
    assert chain.latents.shape == (5, 3, 4, 8, 8) and chain.log_density.isfinite().all()
