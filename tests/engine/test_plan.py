"""The choice of a mode: by the memory that one candidate was measured to hold, said once, refused before training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from diffpref.engine.build import sizes
from diffpref.engine.memory import GIB, candidate_bytes
from diffpref.engine.modes import LOSS_MODES, Auto, Deferred, Joint, TwoPass, Work
from diffpref.engine.modes.base import TRANSIENT
from diffpref.engine.plan import Plan, choose
from diffpref.errors import model_error
from diffpref.sources.dataset import Dataset
from diffpref.sources.on_policy import OnPolicy
from diffpref.training.loop import train
from diffpref.types import Probe
from tests.engine.world import part, world
from tests.small_sdxl import read_metrics

# SDXL at 1024 pixels, LoRA of rank 64, four pairs (DESIGN's figures): 5.4 GiB a candidate, a tenth with checkpointing.
SDXL = Work(
    candidate=int(5.4 * GIB),
    checkpointed=int(0.5 * GIB),
    gradient=int(0.35 * GIB),
    groups=4,
    k=2,
    cheap_scratch=True,
)
FULL = replace(SDXL, candidate=int(6.4 * GIB), gradient=int(9.6 * GIB), cheap_scratch=False)
LIST = replace(SDXL, groups=1, k=8)


def auto(work: Work, gib: float, **options: Any) -> tuple[str, int, bool]:
    choice = LOSS_MODES[options.pop("mode", "auto")](micro_batch=options.pop("micro_batch", 0))
    plan = choose(choice, work, **{"checkpointing": False, "budget": int(gib * GIB), **options})
    return plan.name, plan.micro_batch, plan.checkpointing


@pytest.mark.parametrize(
    ("work", "gib", "expected"),
    [
        (SDXL, 60, ("joint", 8, False)),
        (SDXL, 40, ("deferred", 6, False)),
        (SDXL, 16, ("deferred", 2, False)),
        # A pair in micro-batches of one: 5.4 GiB with a margin, and one scratch.
        (SDXL, 7, ("deferred", 1, False)),
        (SDXL, 5, ("joint", 8, True)),
        (SDXL, 2, ("deferred", 2, True)),
        (LIST, 20, ("deferred", 2, False)),
        (LIST, 9, ("deferred", 1, False)),
        # Seven scratches do not fit beside a candidate: with checkpointing the whole list does.
        (LIST, 7, ("joint", 8, True)),
        # Nor does a longer list: two passes cost what checkpointing does, and have no scratch.
        (replace(LIST, k=16), 7, ("two-pass", 1, False)),
        (replace(LIST, k=16), 6.9, ("two-pass", 1, False)),
        (replace(LIST, k=16), 6, ("deferred", 1, True)),
        (replace(LIST, k=16, cheap_scratch=False), 6, ("two-pass", 10, True)),
        (FULL, 20, ("deferred", 2, False)),
        # A scratch of all weights is never worth it.
        (FULL, 10, ("joint", 8, True)),
        (replace(FULL, groups=1, k=8, checkpointed=None), 10, ("two-pass", 1, False)),
        (replace(SDXL, cut=False), 40, ("joint", 8, True)),
        # Seven chains of a prompt, whose pairs come in batches of one: joint would run each chain six times.
        (replace(LIST, k=7, batch=2), 60, ("deferred", 7, False)),
        (replace(LIST, k=7, batch=2, cut=False), 60, ("joint", 2, False)),
    ],
)
def test_auto_takes_the_fastest_that_fits(work: Work, gib: float, expected: tuple[str, int, bool]) -> None:
    assert auto(work, gib) == expected


def test_settings_are_kept() -> None:
    assert auto(SDXL, 60, micro_batch=2) == ("joint", 8, False)
    assert auto(SDXL, 40, micro_batch=2) == ("deferred", 2, False)
    assert auto(SDXL, 60, mode="two-pass") == ("two-pass", 8, False)
    assert auto(SDXL, 60, checkpointing=True) == ("joint", 8, True)


def test_nothing_fits() -> None:
    plan = choose(Auto(), SDXL, checkpointing=False, budget=GIB // 4)
    assert not plan.fits and plan.checkpointing and "may not fit" in plan.line()
    with pytest.raises(ValueError, match=r"loss_mode joint needs about 49\.\d+ GiB for 8 .* 40\.00 GiB are there: set"):
        choose(Joint(), SDXL, checkpointing=False, budget=40 * GIB)
    with pytest.raises(ValueError, match=r"loss_mode deferred needs .* or micro_batch: 1"):
        choose(Deferred(2), SDXL, checkpointing=False, budget=7 * GIB)


def test_the_need_of_each_mode() -> None:
    one = int(TRANSIENT * SDXL.candidate)
    assert Joint().need(LIST, 8, checkpointing=False) == 8 * one
    assert TwoPass().need(LIST, 1, checkpointing=False) == one
    assert Deferred().need(LIST, 1, checkpointing=False) == one + 7 * SDXL.gradient
    assert Deferred().need(SDXL, 4, checkpointing=False) == 4 * one


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_candidate_is_measured(checkpointing: bool) -> None:
    """Against the saved tensors themselves, kept by this test; with checkpointing the blocks' inputs alone."""
    w = world("sdxl", torch.float32, checkpointing=checkpointing)
    probe = part(w, 1, 1, 0).probe
    found = candidate_bytes(w.policy, w.network, probe)
    plain = w if not checkpointing else world("sdxl", torch.float32)
    own = {p.untyped_storage().data_ptr() for p in (*plain.network.parameters(), *plain.network.buffers())}
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        error = model_error(plain.policy, probe)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    whole = sum(size for place, size in storages.items() if place not in own)
    assert error.requires_grad and w.network.is_gradient_checkpointing == checkpointing
    if checkpointing:
        assert 0 < found < whole / 2
    else:
        assert found == whole


def test_twice_the_candidates_hold_twice_the_bytes() -> None:
    w = world("sdxl", torch.float32)
    one, two = (part(w, b, 1, 0).probe for b in (1, 2))
    double = Probe(two.x_t, two.target, two.t, two.weight, two.cond)
    ratio = candidate_bytes(w.policy, w.network, double) / candidate_bytes(w.policy, w.network, one)
    assert ratio == pytest.approx(2, rel=0.01)


def test_a_run_says_its_mode_and_auto_follows_the_budget(settings: Callable[..., Any], tmp_path: Path) -> None:
    shared = {"train_batch_size": 2, "max_train_steps": 1}
    lines = {}
    for name, budget in (("roomy", 0.0), ("tight", 1e-3)):
        said: list[str] = []
        AcceleratorState._reset_state(reset_partial_state=True)
        done = train(settings(output_dir=str(tmp_path / name), memory_budget_gib=budget, **shared), say=said.append)
        (lines[name],) = [line for line in said if line.startswith("loss_mode")]
        assert read_metrics(done)[0]["loss_mode"] == lines[name].split()[1].rstrip(":")
    assert lines["roomy"].startswith("loss_mode joint: a batch in one graph; about 0.0")
    assert lines["tight"].startswith("loss_mode deferred:")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_mode": "joint", "memory_budget_gib": 1e-4}, "loss_mode joint needs about 0.0"),
        (
            {"loss_mode": "joint", "micro_batch": 2},
            "micro_batch belongs to loss_mode: auto or deferred or two-pass, and this",
        ),
        ({"micro_batch": -1}, "micro_batch must be 0 or above, got -1"),
        ({"reference_memory": "streamed"}, "reference_memory belongs to adapter: full, and this is adapter: lora"),
        ({"stored_reference": -1}, "stored_reference must be 0 or above"),
        ({"memory_budget_gib": -1.0}, "memory_budget_gib must be 0 or above"),
        (
            {"stored_reference": 2, "probe": "inversion", "stored_inversions": 3},
            "stored_inversions and stored_reference count the same draws",
        ),
        (
            {"stored_reference": 2, "probe": "inversion", "inversion_model": "policy"},
            "stored_reference needs inversion_model: reference",
        ),
        (
            {"adapter": "full", "reference_memory": "streamed", "probe": "inversion", "inversion_model": "policy"},
            "the policy cannot invert it",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_the_output_is_claimed(
    settings: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(settings(**changes), say=lambda line: None)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_resumed_run_keeps_its_mode(settings: Callable[..., Any], tmp_path: Path) -> None:
    """auto chose deferred where memory was short; with more of it the checkpoint goes on as it was."""
    shared = {"checkpointing_steps": 1, "output_dir": str(tmp_path / "run")}
    first = {"max_train_steps": 1, "memory_budget_gib": 1e-3}
    for changes in (first, {"max_train_steps": 2, "resume_from_checkpoint": "latest"}):
        AcceleratorState._reset_state(reset_partial_state=True)
        done = train(settings(**shared, **changes), say=lambda line: None)
    assert [line["loss_mode"] for line in read_metrics(done)] == ["deferred", "deferred"]
    plan = Plan(mode=Joint(), micro_batch=4, checkpointing=False, need=1, budget=2, fits=True)
    assert plan.line().startswith("loss_mode joint: a batch")


@pytest.mark.parametrize(
    ("chains", "batch", "accumulation", "expected"),
    [
        # Seven chains are 21 pairs. 40 batches of one pair: two prompts' steps, whose pairs joint would run apart.
        (7, 1, 40, (2, 7, 2)),
        (7, 42, 1, (2, 7, 0)),
        (7, 42, 2, (4, 7, 14)),
        (2, 3, 4, (3, 2, 0)),
    ],
)
def test_the_pairs_of_a_prompts_chains_are_one_set(
    chains: int, batch: int, accumulation: int, expected: tuple[int, int, int]
) -> None:
    assert (
        sizes(batch, 2, chains=OnPolicy(chains_per_prompt=chains).gives.together, accumulation=accumulation) == expected
    )
    assert sizes(batch, 2, chains=Dataset().gives.together, accumulation=accumulation) == (batch, 2, 0)
