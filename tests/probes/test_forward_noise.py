"""Noise offset and input perturbation of the forward probe, against the rules of the published scripts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from diffpref.path import variance_preserving
from diffpref.probes import Batch, Forward
from diffpref.settings.bounds import check
from diffpref.training.settings import from_mapping
from diffpref.types import Candidates, Probe
from tests.probes.test_probes import Net, prober

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SIDE = 64


def batch(*names: str, shared: bool = True) -> Batch:
    draw = torch.Generator().manual_seed(5)
    x0 = torch.randn(len(names), 2, 4, SIDE, SIDE, generator=draw)
    eps = torch.randn(len(names), 1 if shared else 2, 4, SIDE, SIDE, generator=draw).expand_as(x0)
    t = torch.tensor([100, 700, 999][: len(names)])
    cond = {"prompt": torch.zeros(len(names))}
    return Batch(Candidates(x0, torch.tensor([[1.0, 0.0]] * len(names)), cond), t, eps, names)


def probe(settings: Forward, given: Batch, folder: Path) -> Probe:
    net = Net(torch.tensor(0.5), variance_preserving(SCHEDULER.alphas_cumprod))
    return prober(settings, folder, policy=net, reference=net)(given, given.candidates.cond)


@pytest.mark.parametrize("shared", [True, False])
def test_an_offset_is_one_number_a_channel_and_part_of_the_target(shared: bool, tmp_path: Path) -> None:
    given = batch("a", "b", "c", shared=shared)
    found = probe(Forward(shared_noise=shared, noise_offset=0.25), given, tmp_path)
    offset = (found.target - given.eps) / 0.25
    # The same at all places of a channel, up to the rounding of the difference.
    assert offset.flatten(3).std(-1).max() < 1e-5
    assert torch.allclose(offset[:, 0], offset[:, 1], atol=1e-5) == shared
    numbers = offset[..., 0, 0] if not shared else offset[:, 0, :, 0, 0]
    assert len(numbers.flatten().round(decimals=4).unique()) == numbers.numel()
    # What is added to the noise is in the latent too, as the scheduler adds it.
    flat = found.target.flatten(0, 1)
    expected = SCHEDULER.add_noise(given.candidates.x0.flatten(0, 1), flat, given.t.repeat_interleave(2))
    torch.testing.assert_close(found.x_t.flatten(0, 1), expected)


def test_a_perturbation_is_seen_and_not_predicted(tmp_path: Path) -> None:
    given = batch("a", "b", "c")
    plain, found = probe(Forward(), given, tmp_path), probe(Forward(input_perturbation=0.1), given, tmp_path)
    assert torch.equal(found.target, plain.target) and torch.equal(found.target, given.eps)
    # The official rule adds to the noise before the scheduler does: x_t moves by sigma * 0.1 * a normal number.
    sigma = (1 - SCHEDULER.alphas_cumprod[given.t]).sqrt()[:, None, None, None, None]
    noise = (found.x_t - plain.x_t) / (0.1 * sigma)
    assert noise.mean().abs() < 0.02 and noise.std() == pytest.approx(1, abs=0.02)
    expected = SCHEDULER.add_noise(
        given.candidates.x0.flatten(0, 1), (given.eps + 0.1 * noise).flatten(0, 1), given.t.repeat_interleave(2)
    )
    torch.testing.assert_close(found.x_t.flatten(0, 1), expected)
    # Each picture's own, and no copy of the noise or of another picture's.
    pictures = torch.cat([noise.flatten(0, 1).flatten(1), given.eps[:, 0].flatten(1)])
    assert (torch.corrcoef(pictures) - torch.eye(len(pictures))).abs().max() < 0.05


@pytest.mark.parametrize("settings", [Forward(noise_offset=0.1), Forward(input_perturbation=0.1)])
def test_a_groups_own_noise_follows_from_its_name_and_the_seed(settings: Forward, tmp_path: Path) -> None:
    whole = batch("a", "b", "c")
    part = Batch(
        Candidates(whole.candidates.x0[1:2], whole.candidates.scores[1:2], {"prompt": torch.zeros(1)}),
        whole.t[1:2],
        whole.eps[1:2],
        ("b",),
    )
    assert torch.equal(probe(settings, whole, tmp_path).x_t[1:2], probe(settings, part, tmp_path).x_t)
    other = replace(part, names=("a",))
    assert not torch.equal(probe(settings, other, tmp_path).x_t, probe(settings, part, tmp_path).x_t)


def test_kept_errors_are_told_apart_and_those_of_before_keep_their_name() -> None:
    assert dict(Forward().identity()) == {"probe": "Forward", "shared_noise": True}
    assert Forward(noise_offset=0.1).identity()["noise_offset"] == 0.1
    assert Forward(input_perturbation=0.1).identity() != Forward(input_perturbation=0.2).identity()


def test_inversion_has_no_noise_to_change() -> None:
    with pytest.raises(ValueError, match="noise_offset belongs to probe: forward, and this is probe: inversion"):
        from_mapping({"probe": "inversion", "noise_offset": 0.1}, "here")
    with pytest.raises(ValueError, match="input_perturbation must be 0 or above"):
        check(from_mapping({"input_perturbation": -0.1}, "here"))
