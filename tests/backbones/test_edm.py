"""The EDM family against its pipeline, diffusers and closed forms: path, times, classes, pictures."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import EDMEulerScheduler
from torch import Tensor

from diffpref.backbones import Checkpoint, Times
from diffpref.backbones.edm import EDM, EDMNetwork, LogNormalTimes
from diffpref.transition import sample_chain
from diffpref.types import Backbone
from tests.small_edm import SIGMA_DATA, SIZE

Make = Callable[..., Checkpoint]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The path and its times.


def test_the_path_adds_noise_as_the_scheduler_does(grey: Checkpoint) -> None:
    path, scheduler = EDM(grey).path, EDMEulerScheduler(sigma_data=SIGMA_DATA)
    x0, eps = normal(3, 4, 8, 8), normal(3, 4, 8, 8, seed=1)
    scheduler.set_timesteps(7)
    steps = torch.tensor([0, 3, 6])
    torch.testing.assert_close(
        path.noise(x0, eps, scheduler.sigmas[steps]), scheduler.add_noise(x0, eps, scheduler.timesteps[steps])
    )
    assert torch.equal(path.target(x0, eps, torch.ones(3)), x0)
    assert path.schedule.sigma_data == SIGMA_DATA


def test_a_scheduler_with_another_preconditioning_is_refused(grey: Checkpoint, tmp_path: Path) -> None:
    EDMEulerScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ValueError, match="prediction_type must be epsilon for EDM, got v_prediction"):
        _ = EDM(Checkpoint(str(tmp_path))).path


def test_sigma_is_log_normal(grey: Checkpoint) -> None:
    times = EDM.open(grey, Times(p_std=0.8), SIZE).times
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([times.draw(generator) for _ in range(20_000)]).double()
    # Quantiles of N(0, 1); sigma_data 0.7 moves the mean by ln 1.4 from the paper's -1.2.
    mean = -1.2 + math.log(1.4)
    for probability, z in ((0.05, -1.6449), (0.25, -0.6745), (0.5, 0.0), (0.75, 0.6745), (0.95, 1.6449)):
        # The standard error of the outer quantiles of 20 000 draws is 0.015.
        assert (drawn.quantile(probability).log() - mean) / 0.8 == pytest.approx(z, abs=0.06)


def test_times_are_resolved(make_edm: Make, grey: Checkpoint) -> None:
    assert EDM.open(make_edm(sigma_data=0.5), Times(), SIZE).times == LogNormalTimes(-1.2, 1.2)
    # A value of the user's own stays.
    assert EDM.open(grey, Times("log_normal", p_mean=-0.4, p_std=1.0), SIZE).times.mean == -0.4
    for density in ("uniform", "logit_normal"):
        with pytest.raises(ValueError, match=f"timestep_density {density} is not for EDM.* use log_normal"):
            EDM.open(grey, Times(density), SIZE)
    assert EDM.open(make_edm(sigma_data=0.5), Times(t_min=0.5), SIZE).times == LogNormalTimes(-1.2, 1.2, 0.5)
    for times, message in (
        (Times(p_std=0.0, t_max=3.0), "p_std 0 draws one sigma alone: leave t_max out"),
        (Times(timesteps=(0.0, 1.0)), "timesteps are sigmas above 0, got 0"),
        (Times(zero_terminal_snr=True), "zero_terminal_snr is for SD 1.5 and SDXL"),
    ):
        with pytest.raises(ValueError, match=message):
            EDM.open(grey, times, SIZE)
    with pytest.raises(ValueError, match="p_std must be 0 or above, got -1"):
        EDM.open(grey, Times(p_std=-1.0), SIZE)


def test_chains_fall_along_the_samplers_levels(make_edm: Make) -> None:
    scheduler = EDMEulerScheduler(sigma_max=50.0, sigma_min=0.01)
    scheduler.set_timesteps(6)
    times = EDM(make_edm(sigma_max=50.0, sigma_min=0.01)).chain_times(5)
    assert times.dtype == torch.float32
    torch.testing.assert_close(times, scheduler.sigmas[:-1])


def test_time_fraction_is_the_noises_share() -> None:
    assert EDM(Checkpoint("")).time_fraction(torch.tensor([0.25, 1, 99])).tolist() == pytest.approx([0.2, 0.5, 0.99])


# The backbone.


def test_the_backbone_is_the_denoiser_whatever_carries_the_labels(grey: Checkpoint) -> None:
    network = EDM(grey).load_network(torch.float32).eval()
    backbone = EDMNetwork(network, EDM(grey).path)
    assert isinstance(backbone, Backbone)
    x, sigma, labels = normal(3, 4, 8, 8), torch.tensor([0.05, 1.0, 40.0]), torch.tensor([0, 2, 3])
    scheduler = EDMEulerScheduler(sigma_data=SIGMA_DATA)
    with torch.no_grad():
        predicted = backbone(x, sigma, {"labels": labels})
        s = sigma.view(-1, 1, 1, 1)
        inner = network(scheduler.precondition_inputs(x, s), sigma.log() / 4, class_labels=labels).sample
        torch.testing.assert_close(predicted, scheduler.precondition_outputs(x, inner, s))
        for carrier in (labels.half().float(), labels.float() - 0.01):
            assert torch.equal(backbone(x, sigma, {"labels": carrier}), predicted)
        assert not torch.allclose(backbone(x, sigma, {"labels": labels.flip(0)})[0], predicted[0], atol=1e-4)


def test_the_backbone_of_an_unconditional_network_ignores_labels(unconditional: Checkpoint) -> None:
    backbone = EDMNetwork(EDM(unconditional).load_network(torch.float32), EDM(unconditional).path)
    x, sigma = normal(2, 4, 8, 8), torch.tensor([0.1, 10.0])
    with torch.no_grad():
        first = backbone(x, sigma, {"labels": torch.zeros(2)})
        assert first.shape == x.shape and torch.equal(first, backbone(x, sigma, {"labels": torch.ones(2)}))


def test_the_backbone_over_a_wrapped_network(grey: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with several processes: the wrapper calls the network, but has no config."""

    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Tensor, **options: object) -> object:
            return self.module(*inputs, **options)

    network, path = EDM(grey).load_network(torch.float32), EDM(grey).path
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", Wrapper)
    x, sigma, cond = normal(1, 4, 8, 8), torch.tensor([2.0]), {"labels": torch.tensor([1])}
    with torch.no_grad():
        wrapped = EDMNetwork(Wrapper(network), path)(x, sigma, cond)
        assert torch.equal(wrapped, EDMNetwork(network, path)(x, sigma, cond))


def test_a_chain_runs_on_the_path(grey: Checkpoint) -> None:
    backbone = EDMNetwork(EDM(grey).load_network(torch.float32), EDM(grey).path)
    times = EDM(grey).chain_times(3)
    chain = sample_chain(backbone, 80 * normal(2, 4, 8, 8), times, {"labels": torch.tensor([0, 1])}, rule=EDM.step)
    assert chain.latents.shape == (4, 2, 4, 8, 8) and chain.latents.isfinite().all()
    assert chain.log_density.isfinite().all()
