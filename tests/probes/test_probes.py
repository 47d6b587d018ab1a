"""The probes that a run may choose: what each makes of a batch, kept inversions, and the backbone's weight."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffpref.backbones import Checkpoint
from diffpref.backbones.edm import EDM
from diffpref.backbones.sdxl import SDXL
from diffpref.path import GaussianPath, variance_preserving
from diffpref.probe import forward_probe, inversion_probe, transition_probe
from diffpref.probes import Batch, Forward, Inversion, ProbeChoice, Stage, StepBatch, Transition
from diffpref.training.settings import from_mapping
from diffpref.types import Candidates, Cond
from examples.official_inversion import invert_as_published
from tests.small_edm import SIGMA_DATA, save_pipeline

PATH = variance_preserving(torch.linspace(0.999, 0.01, 1000))
INVERSION = Inversion(inversion_steps=4)
PUBLISHED = "examples/official_inversion.py:invert_as_published"

UNWEIGHTED = SDXL(Checkpoint(""))


@dataclass(frozen=True)
class Net:
    """A network that counts the samples it is asked for."""

    weight: torch.Tensor
    path: GaussianPath = PATH
    calls: list[int] = field(default_factory=list)

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, cond: Cond) -> torch.Tensor:
        self.calls.append(len(x_t))
        return (self.weight * x_t + cond["prompt"].reshape(-1, 1, 1, 1)).sin()


def batch(*groups: int, epoch: int = 0) -> Batch:
    """Groups whose pictures, t and prompt follow from their number."""
    draws = [torch.Generator().manual_seed(group) for group in groups]
    x0 = torch.stack([torch.randn(2, 1, 3, 3, generator=draw) for draw in draws])
    eps = torch.stack([torch.randn(2, 1, 3, 3, generator=draw) for draw in draws])
    t = torch.tensor([100 + 97 * group for group in groups])
    cond = {"prompt": torch.tensor([0.1 * group for group in groups])}
    scores = torch.tensor([[1.0, 0.0]] * len(groups))
    return Batch(Candidates(x0, scores, cond), t, eps, tuple(f"{group}-{epoch}" for group in groups))


def prober(settings: ProbeChoice, store: Path, identity: str = "run", family: Any = UNWEIGHTED, **models: Net) -> Any:
    policy, reference = (models.get(name, Net(torch.tensor(0.5))) for name in ("policy", "reference"))
    stage = Stage(
        policy=policy,
        reference=reference,
        weight=family.loss_weight,
        rule=family.step,
        seed=3,
        identity=identity,
        folder=store,
    )
    return settings.build(stage)


def assert_equal(one: Any, other: Any) -> None:
    for name in ("x_t", "target", "t", "weight"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("extra", [{}, {"renoise": 1, "average_estimates": True}, {"inverter": PUBLISHED}])
def test_inversion_is_inversion_probe(extra: dict[str, Any], tmp_path: Path) -> None:
    given = batch(1, 2, 3)
    reference = Net(torch.tensor(0.7))
    found = prober(replace(INVERSION, **extra), tmp_path, reference=reference)(given, given.candidates.cond)
    if "inverter" in extra:
        extra = {"inverter": invert_as_published}
    options = {"average" if name == "average_estimates" else name: value for name, value in extra.items()}
    cond = given.candidates.cond
    assert_equal(found, inversion_probe(reference, given.candidates.x0, given.t, cond, steps=4, **options))


def test_forward_is_forward_probe(tmp_path: Path) -> None:
    given = batch(1, 2)
    found = prober(Forward(), tmp_path)(given, given.candidates.cond)
    assert_equal(found, forward_probe(PATH, given.candidates.x0, given.t, given.eps, given.candidates.cond))


def test_kept_inversions_cost_no_call_and_survive_the_process(tmp_path: Path) -> None:
    settings, reference = replace(INVERSION, stored_inversions=1), Net(torch.tensor(0.7))
    first = prober(settings, tmp_path, reference=reference)
    given = batch(1, 2, 3)
    found = first(given, given.candidates.cond)
    assert sum(reference.calls) == 4 * 6
    mixed = batch(3, 4, 1)
    again = first(mixed, mixed.candidates.cond)
    assert sum(reference.calls) == 4 * 6 + 4 * 2, "group 4 alone"
    assert torch.equal(again.x_t[0], found.x_t[2]) and torch.equal(again.x_t[2], found.x_t[0])
    first.flush()
    reference.calls.clear()
    assert_equal(prober(settings, tmp_path, reference=reference)(given, given.candidates.cond), found)
    assert not reference.calls
    for changed in (
        prober(settings, tmp_path, "another run", reference=reference),
        prober(replace(settings, renoise=1), tmp_path, reference=reference),
    ):
        reference.calls.clear()
        changed(given, given.candidates.cond)
        assert reference.calls
    other = batch(1, 2, 3, epoch=1)
    reference.calls.clear()
    first(other, other.candidates.cond)
    assert reference.calls, "another draw of the same group"


def test_the_policys_inversion_follows_its_training(tmp_path: Path) -> None:
    policy, reference = Net(torch.tensor(0.5)), Net(torch.tensor(0.5))
    given = batch(1, 2)
    by_policy = prober(replace(INVERSION, inversion_model="policy"), tmp_path, policy=policy, reference=reference)
    by_reference = prober(INVERSION, tmp_path, policy=policy, reference=reference)
    before = [probe(given, given.candidates.cond) for probe in (by_policy, by_reference)]
    assert_equal(*before)
    policy.weight.mul_(2)
    after = [probe(given, given.candidates.cond) for probe in (by_policy, by_reference)]
    assert not torch.equal(after[0].x_t, before[0].x_t)
    assert_equal(after[1], before[1])


def test_the_noise_of_eta_depends_on_the_group_alone(tmp_path: Path) -> None:
    probe = prober(replace(INVERSION, inversion_eta=0.5), tmp_path)
    plain = prober(INVERSION, tmp_path)
    together, alone = batch(1, 2, 3), batch(2)
    found = probe(together, together.candidates.cond)
    # float32: a batch of another size may be summed in another order
    torch.testing.assert_close(found.x_t[1:2], probe(alone, alone.candidates.cond).x_t, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found.x_t, plain(together, together.candidates.cond).x_t)
    other = batch(2, epoch=1)
    assert not torch.allclose(found.x_t[1:2], probe(other, other.candidates.cond).x_t)


def test_the_backbones_weight_is_on_pictures_and_not_on_steps(tmp_path: Path) -> None:
    family = EDM(Checkpoint(str(save_pipeline(tmp_path / "edm"))))
    path = family.path
    model = Net(torch.tensor(0.1), path)
    sigma = torch.tensor([0.5, 2.0])
    given = replace(batch(1, 2), t=sigma)
    cond = given.candidates.cond
    # Karras et al. 2022, table 1.
    expected = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    for settings in (Forward(), INVERSION):
        probe = prober(settings, tmp_path, family=family, policy=model, reference=model)(given, cond)
        torch.testing.assert_close(probe.weight, expected)
    steps = StepBatch(given.candidates, sigma, given.candidates.x0 * 0.9, sigma / 2)
    found = prober(Transition(), tmp_path, family=family, policy=model, reference=model)(steps, cond)
    x_t = given.candidates.x0
    assert_equal(found, transition_probe(path, x_t, steps.x_s, sigma, steps.s, cond, rule=EDM.step))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inversion_steps": 0}, "inversion_steps must be 1 or above, got 0"),
        ({"renoise": -1}, "renoise must be 0 or above"),
        ({"average_estimates": True}, "renoise must be 1 or above with average_estimates"),
        ({"inversion_eta": -0.1}, "inversion_eta must be 0 or above"),
        ({"inversion_eta": float("nan")}, "inversion_eta must be 0 or above"),
        ({"stored_inversions": -1}, "stored_inversions must be 0 or above"),
        ({"stored_inversions": 1, "inversion_eta": 0.1}, "stored_inversions needs inversion_model: reference"),
        ({"stored_inversions": 1, "inversion_model": "policy"}, "stored_inversions needs inversion_model: reference"),
        ({"stored_inversions": 1, "probe": "forward"}, "stored_inversions belongs to probe: inversion"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], message: str) -> None:
    given = {"probe": "inversion", "inversion_steps": 4} | changes
    if given["probe"] != "inversion":
        del given["inversion_steps"]
    with pytest.raises(ValueError, match=message):
        from_mapping(given, "here")
