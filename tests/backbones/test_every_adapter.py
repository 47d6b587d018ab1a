"""What every adapter answers, by the same tests through `build_models` on a small real network."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from diffpref.backbones import Checkpoint, Family, Times, open_backbone, with_weights
from diffpref.backbones.adapters import ADAPTERS, Adapter, Full, LoRA, trainable
from diffpref.training.models import Computing, Models, build_models
from diffpref.types import Cond
from examples.extension.adapter import SomeWeights
from tests.small_sdxl import SIZE

CASES: dict[str, Adapter] = {
    "lora": LoRA(rank=4),
    "full": Full(),
    "streamed": Full(reference_memory="streamed"),
    "example": SomeWeights(),
}


def test_every_member_has_a_case() -> None:
    assert {type(case) for case in CASES.values()} >= set(ADAPTERS.values())


@pytest.fixture(params=CASES)
def adapter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Adapter:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    return CASES[request.param]


@pytest.fixture(scope="module")
def family(base: Checkpoint) -> Family:
    return open_backbone(base, Times(), resolution=SIZE)


def built(family: Family, adapter: Adapter) -> Models:
    return build_models(family, adapter, Accelerator(), computing=Computing(), seed=0)


def a_batch(family: Family) -> tuple[torch.Tensor, torch.Tensor, Cond]:
    make = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, SIZE // 8, SIZE // 8, generator=make)
    cond = {"prompt_embeds": torch.randn(2, 8, 32, generator=make), "pooled": torch.randn(2, 16, generator=make)}
    return x, torch.tensor([10, 900]), family.group_cond(cond, SIZE)


def shake(models: Models) -> None:
    """Weights as after some steps."""
    make = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in trainable(models.network):
            parameter += 0.05 * torch.randn(parameter.shape, generator=make)


def answers(models: Models, family: Family, adapter: Adapter) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """The policy's and the reference's answer to the same images, whenever called; made before any weight moves."""
    streamed, (x, t, cond) = adapter.streamed(models.network), a_batch(family)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            policy = models.policy(x, t, cond)
            if streamed is None:
                return policy, models.reference(x, t, cond)
            with streamed.loaded():
                return policy, models.reference(x, t, cond)

    return both


def test_it_is_a_value(adapter: Adapter) -> None:
    assert isinstance(adapter, Adapter) and adapter == replace(adapter)  # type: ignore[type-var]
    with pytest.raises(FrozenInstanceError):
        adapter.anything = 1  # type: ignore[attr-defined]
    assert adapter.counted().identity() == adapter.identity()
    compile(adapter.words.load, "the card", "exec")


def test_policy_and_reference_start_equal_and_the_reference_stays(adapter: Adapter, family: Family) -> None:
    models = built(family, adapter)
    both = answers(models, family, adapter)
    policy, reference = both()
    assert torch.equal(policy, reference)
    shake(models)
    moved, stayed = both()
    assert not torch.equal(moved, policy) and torch.equal(stayed, reference)
    again, _ = both()
    assert torch.equal(again, moved)


def test_only_what_is_trained_gets_gradients(adapter: Adapter, family: Family) -> None:
    models = built(family, adapter)
    trained = trainable(models.network)
    assert trained and all(p.dtype == torch.float32 for p in trained)
    x, cond = (
        torch.randn(2, 4, SIZE // 8, SIZE // 8),
        {"prompt_embeds": torch.randn(2, 8, 32), "pooled": torch.randn(2, 16)},
    )
    models.policy(x, torch.tensor([10, 900]), family.group_cond(cond, SIZE)).square().sum().backward()
    with_gradient = {id(p) for p in models.network.parameters() if p.grad is not None}
    assert with_gradient == {id(p) for p in trained}


def test_state_goes_back(adapter: Adapter, family: Family) -> None:
    models, others = built(family, adapter), built(family, adapter)
    shake(models)
    state = {name: value.clone() for name, value in adapter.state(models.network).items()}
    adapter.load(others.network, state)
    both, other = answers(models, family, adapter), answers(others, family, adapter)
    assert torch.equal(both()[0], other()[0])
    with pytest.raises((ValueError, RuntimeError), match="(?i)layer|key|missing"):
        adapter.load(others.network, {"nowhere.weight": torch.zeros(1)})


def test_a_run_goes_on_from_what_was_saved(adapter: Adapter, family: Family, tmp_path: Path) -> None:
    models = built(family, adapter)
    both = answers(models, family, adapter)
    shake(models)
    adapter.save(models.network, family, tmp_path)
    following, weights = adapter.continued(tmp_path, family.checkpoint.network_weights)
    onward = with_weights(family, weights)
    found = answers(built(onward, following), onward, following)
    torch.testing.assert_close(found()[0], both()[0], rtol=1e-5, atol=1e-5)
