"""D3PO's own chains: DDIM's grid, eta and a share of the steps, against diffusers' scheduler and the official rules."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from diffpref.backbones import Checkpoint, Times, open_backbone
from diffpref.backbones.unet import UNetFamily
from diffpref.probes import Transition
from diffpref.sources.chains import ChainGroups
from diffpref.training.config import TrainConfig
from tests.small_sdxl import SIZE, save_pipeline
from tests.sources.conftest import opened, start
from tests.sources.test_chain_stream import GROUPS, PAIRS, data, seen, stream

Make = Callable[..., TrainConfig]
__all__ = ["data"]


@pytest.fixture(scope="module")
def offset(tmp_path_factory: pytest.TempPathFactory) -> UNetFamily:
    """A pipeline whose scheduler begins at index 1, as those of SD 1.5 and SDXL do."""
    folder = save_pipeline(tmp_path_factory.mktemp("offset"), steps_offset=1)
    family = open_backbone(Checkpoint(str(folder)), Times(), resolution=SIZE)
    assert isinstance(family, UNetFamily)
    return family


def ddim(family: UNetFamily, steps: int) -> DDIMScheduler:
    """As D3PO makes it from the pipeline's own."""
    scheduler = DDIMScheduler.from_pretrained(family.checkpoint.source, subfolder="scheduler", clip_sample=False)
    assert isinstance(scheduler, DDIMScheduler)
    # What is below the last step in SD's own configuration, and by the official code's clamp: index 0.
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    return scheduler


def test_the_grid_is_ddims(offset: UNetFamily, d3po: Make) -> None:
    times = offset.leading_times(20)
    assert times.tolist() == [*ddim(offset, 20).timesteps.tolist(), 0]
    assert times.tolist() == [*range(951, 0, -50), 0]
    plain = opened(d3po())
    assert isinstance(plain, UNetFamily)
    # Without the offset the grid ends at 0 itself, below which a step has no noise.
    assert plain.leading_times(20).tolist() == ddim(plain, 20).timesteps.tolist() == [*range(950, -1, -50)]


@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_a_step_is_ddims(offset: UNetFamily, eta: float) -> None:
    scheduler, times = ddim(offset, 20), offset.leading_times(20)
    rule = Transition(chain_eta=eta).traits.rule(offset.step)
    draw = torch.Generator().manual_seed(0)
    for t, s in zip(times[:-1], times[1:], strict=True):
        x, eps, z = (torch.randn(1, 4, 8, 8, generator=draw, dtype=torch.float64) for _ in range(3))
        step = rule(offset.path, t[None], s[None])
        expected = scheduler.step(eps, int(t), x, eta=eta, variance_noise=z).prev_sample  # type: ignore[union-attr]
        torch.testing.assert_close(step.keep * x + step.gain * eps + step.std * z, expected, rtol=1e-4, atol=1e-4)


def test_chains_are_drawn_and_trained_on_that_grid_with_that_noise(d3po: Make, offset: UNetFamily) -> None:
    source = {"pretrained_model_name_or_path": offset.checkpoint.source, "rounds": 1, "ddim_grid": True}
    config = d3po(**source, chain_steps=4, chain_eta=0.5, train_batch_size=4)
    done = start(config)
    kept = [tensor for file in (done.parent / "chains").glob("*.safetensors") for tensor in load_file(file).items()]
    densities = torch.stack([tensor for name, tensor in kept if name.endswith("/log_density")])
    times = torch.tensor([751, 501, 251, 1, 0])
    assert densities.shape == (8, 4)
    # E log N = -(1 + log 2 pi) / 2 - log std, with the deviation that eta 0.5 leaves of DDIM's posterior.
    table = ddim(offset, 4).alphas_cumprod[times]
    above, below = table[:-1], table[1:]
    std = 0.5 * ((1 - below) / (1 - above) * (1 - above / below)).sqrt()
    expected = -(1 + torch.tensor(2 * torch.pi).log()) / 2 - std.log()
    # Each density is a mean over 4 * 16 * 16 normal numbers' squares, and here over 8 chains.
    side = next(tensor for name, tensor in kept if name.endswith("/latents")).shape[-1]
    spread = (0.5 / (4 * side**2 * 8)) ** 0.5
    assert bool(((densities.mean(0) - expected).abs() < 5 * spread).all())


@pytest.mark.parametrize(("fraction", "kept"), [(0.7, 2), (0.34, 1)])
def test_a_share_of_the_steps(data: ChainGroups, fraction: float, kept: int) -> None:
    """int(3 * fraction) steps of each chain, the first ones of a permutation that all pairs of a prompt share."""
    some = replace(data, fraction=fraction)
    assert len(some) == GROUPS * kept // 3
    epochs = [seen(batch) for batch in stream(some, size=len(some), steps=12)]
    for epoch in epochs:
        steps = {prompt: {group[0][2:] for group in epoch if group[0][0] in "".join(PAIRS[prompt])} for prompt in PAIRS}
        assert all(len(chosen) == kept for chosen in steps.values())
        assert len(epoch) == len(set(epoch)) == kept * 4
    # Over the epochs every step comes, and the prompts are not bound together.
    assert {name for epoch in epochs for group in epoch for name in group} == {
        f"{c} {s}" for c in "abcde" for s in "012"
    }
    assert [seen(batch) for batch in stream(some, size=len(some), steps=12)] == epochs
    assert seen(stream(data, size=GROUPS, steps=1)[0]) == seen(
        stream(replace(data, fraction=1.0), size=GROUPS, steps=1)[0]
    )


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        ("sd3", {"ddim_grid": True}, "ddim_grid is for SD 1.5 and SDXL: SD3 has no table of levels"),
        ("sd3", {"chain_eta": 0.5}, "this backbone's chains are drawn by FlowSDE, whose noise is its own"),
        ("sdxl", {"timestep_fraction": 0.2}, "timestep_fraction 0.2 of chain_steps 3 is no step"),
        ("sdxl", {"zero_terminal_snr": True}, "chains cannot leave t = 999: it holds no picture"),
        ("sdxl", {"ddim_grid": True, "chain_steps": 800}, r"chain_steps must be in \[2, 500\] with ddim_grid, got 800"),
        ("sdxl", {"timesteps": [249]}, "timesteps: the steps of chains have levels of their own"),
        ("sdxl", {"t_min": 5, "t_max": 9}, "t_min and t_max: the steps of chains have levels of their own"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_drawn(
    d3po: Make, base: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        start(d3po(base, **changes))
    assert not (tmp_path / "run").exists()
