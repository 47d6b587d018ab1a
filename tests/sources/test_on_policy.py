"""D3PO's rounds: chains from one start, labels, training, and going on exactly after a kill."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from diffpref import errors
from diffpref.backbones.sdxl import SDXL
from diffpref.engine import runner, step
from diffpref.engine.modes import joint
from diffpref.people import read_pairs
from diffpref.people.pairs import labels_path, write_answers
from diffpref.sources import collect, preference
from diffpref.training.config import TrainConfig
from diffpref.types import Probe
from tests.small_sdxl import read_metrics, read_weights
from tests.sources.conftest import opened, start

Make = Callable[..., TrainConfig]


def chains(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a round's store; files have random names."""
    return {name: t for file in (folder / "chains").glob("*.safetensors") for name, t in load_file(file).items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() and one
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("base", ["sdxl", pytest.param("sd3", marks=pytest.mark.slow)])
def test_two_rounds(d3po: Make, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[Any] = []
    joint_loss = joint.joint_loss

    def spy(*arguments: Any) -> Any:
        errors, loss = joint_loss(*arguments)
        probes.append((arguments[2].parts[arguments[3]].probe, errors))
        return errors, loss

    monkeypatch.setattr(joint, "joint_loss", spy)
    done = start(d3po(base))
    out = done.parents[1]
    assert done == out / "round-2" / "train" and (done / "report.html").is_file()
    first, second = (out / f"round-{number}" for number in (1, 2))
    metrics = read_metrics(first / "train")
    # Round 1 starts as the base: every step is as likely under both.
    assert metrics[0]["rewards/margins"] == 0.0 and metrics[0]["error/chosen/ratio"] == 1.0
    # Round 2 starts from round 1's adapter, and the reference stays the base.
    assert read_metrics(second / "train")[0]["error/chosen/ratio"] != 1.0
    weights = read_weights(done)
    assert weights and all(name.startswith(("lora_unet_", "transformer.")) for name in weights)
    assert any(not torch.equal(tensor, read_weights(first / "train")[name]) for name, tensor in weights.items())
    kept = chains(first)
    latents = [tensor for name, tensor in kept.items() if name.endswith("/latents")]
    assert len(latents) == 8 and all(len(chain) == 4 for chain in latents)
    # Four starts, each of two chains, which part at the first step.
    assert len({tuple(chain[0].flatten().tolist()) for chain in latents}) == 4
    assert len({tuple(chain[1].flatten().tolist()) for chain in latents}) == 8
    # The stored density is the step's: -error / 2 - log std - log(2 pi) / 2, with the error of the chain's policy.
    densities = torch.cat([tensor for name, tensor in kept.items() if name.endswith("/log_density")])
    probe, errors = probes[0]
    family = opened(d3po(base))
    rule, family_path = family.step, family.path
    before = torch.stack([chain[:-1] for chain in latents]).flatten(0, 1)
    after = torch.stack([chain[1:] for chain in latents]).flatten(0, 1)
    for group in range(len(probe.t)):
        for candidate in range(2):
            s = step_below(first, d3po(base), float(probe.t[group]))
            below = rule(family_path, probe.t[group][None], s)
            landed = below.keep * probe.x_t[group, candidate] + below.gain * probe.target[group, candidate]
            place = int((after - landed).flatten(1).abs().sum(1).argmin())
            assert torch.equal(before[place], probe.x_t[group, candidate])
            torch.testing.assert_close(landed, after[place], atol=1e-4, rtol=1e-4)
            implied = (
                -errors.policy[group, candidate].detach() / 2
                - below.std.log()
                - torch.log(torch.tensor(2 * torch.pi)) / 2
            )
            # float32, with errors that are divided by the variance
            assert float(implied) == pytest.approx(float(densities[place]), abs=5e-3)


def step_below(folder: Path, config: TrainConfig, t: float) -> torch.Tensor:
    times = opened(config).chain_times(config.source.chain_steps)
    return times[int((times - t).abs().argmin()) + 1][None]


@pytest.mark.slow
def test_a_killed_collection_resumes_exactly(d3po: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(collect, "BATCH_PROMPTS", 2)
    straight = start(d3po(rounds=1, output_dir=str(tmp_path / "straight")))
    right, calls = collect.sample_chain, []

    def dies(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return right(*arguments, **options)

    monkeypatch.setattr(collect, "sample_chain", dies)
    with pytest.raises(KeyboardInterrupt):
        start(d3po(rounds=1))
    assert not (tmp_path / "run" / "round-1" / "rewards.json").exists()
    done = start(d3po(rounds=1))
    assert len(calls) == 3, "the first batch is not sampled again"
    assert_same(chains(straight.parent), chains(done.parent))
    assert_same(read_weights(straight), read_weights(done))
    for picture in (straight.parent / "pictures").rglob("*.png"):
        again = done.parent / picture.relative_to(straight.parent)
        assert picture.read_bytes() == again.read_bytes()
    # Once more: nothing is sampled or trained.
    said: list[str] = []
    monkeypatch.setattr(step.Engine, "step", lambda *arguments: pytest.fail("a step was taken"))
    assert start(d3po(rounds=1), said) == done and said == ["round 1: done before"]
    with pytest.raises(ValueError, match="rank was 4, is 8"):
        start(d3po(rounds=1, rank=8))
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["rank"] == 4


@pytest.mark.slow
def test_a_killed_training_resumes(d3po: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    straight = start(d3po(rounds=1, checkpointing_steps=1, output_dir=str(tmp_path / "straight")))
    take, calls = step.Engine.step, []

    def dies(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return take(*arguments)

    monkeypatch.setattr(step.Engine, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        start(d3po(rounds=1, checkpointing_steps=1))
    done = start(d3po(rounds=1, checkpointing_steps=1))
    assert len(calls) == 3
    assert_same(read_weights(straight), read_weights(done))


@pytest.mark.parametrize("ties", [False, True])
def test_a_person_labels(d3po: Make, monkeypatch: pytest.MonkeyPatch, ties: bool) -> None:
    def answers(folder: Path, **options: Any) -> None:
        pairs = read_pairs(folder)
        given = {pair.id: "tie" if ties or place == 0 else "second" for place, pair in enumerate(pairs)}
        write_answers(labels_path(folder, ""), given, annotator="")

    monkeypatch.setattr(preference, "serve", answers)
    said: list[str] = []
    if ties:
        with pytest.raises(ValueError, match="none of the 4 pairs has a preference"):
            start(d3po(labels="person", rounds=1), said)
    else:
        start(d3po(labels="person", rounds=1), said)
        assert "labels: 3 of 4 pairs have a better chain" in said


def test_a_reward_decides_by_the_picture(d3po: Make, reward: str) -> None:
    done = start(d3po(rounds=1, chains_per_prompt=3, max_train_steps=1))
    kept = json.loads((done.parent / "rewards.json").read_text())
    assert [len(row) for row in kept["rewards"]] == [3] * 4
    with pytest.raises(ValueError, match="none of the 4 pairs has a preference"):
        start(d3po(labels=f"{reward}:same", output_dir=str(done.parents[1] / "same")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ""}, "on-policy chains need labels"),
        ({"labels": "persn"}, "persn"),
        ({"labels": "absent.py:f"}, "absent.py"),
        ({"chains_per_prompt": 1}, "chains_per_prompt must be 2 or above, got 1"),
        ({"rounds": 0}, "rounds must be 1 or above"),
        ({"chain_steps": 0}, "chain_steps must be 1 or above"),
        ({"prompts_per_round": 0}, "prompts_per_round must be 1 or above"),
        ({"probe": "forward"}, "set probe: transition"),
        ({"dataset_name": ""}, "dataset_name is empty"),
        ({"dataset_name": "/nowhere.txt"}, "nowhere.txt does not exist"),
        ({"proportion_empty_prompts": 0.2}, "set proportion_empty_prompts: 0"),
        ({"resume_from_checkpoint": "checkpoint-1"}, "leave resume_from_checkpoint out"),
        ({"resolution": 36}, "resolution must be a multiple"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    d3po: Make, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("load_network", "load_encoder"):
        monkeypatch.setattr(SDXL, name, lambda *arguments: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=message):
        start(d3po(**changes))
    assert not (tmp_path / "run").exists()


def test_each_chain_runs_once_for_all_its_pairs(d3po: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Four chains are six pairs: four pictures forward and backward, not twelve, also where a batch holds one pair."""
    shapes: list[int] = []
    predict = errors.predict

    def spy(model: Any, probe: Probe) -> torch.Tensor:
        shapes.append(probe.x_t.shape[0] * probe.x_t.shape[1])
        return predict(model, probe)

    monkeypatch.setattr(runner, "predict", spy)
    found = {}
    shared = {"rounds": 1, "chains_per_prompt": 4, "gradient_accumulation_steps": 1, "train_batch_size": 6}
    for name, changes in (("batch", {}), ("window", {"train_batch_size": 1, "gradient_accumulation_steps": 6})):
        shapes.clear()
        done = start(d3po(**{**shared, **changes, "output_dir": str(tmp_path / name)}))
        assert shapes == [4, 4], "two steps of one forward"
        lines = read_metrics(done)
        found[name] = (read_weights(done), [line["loss"] for line in lines], {line["loss_mode"] for line in lines})
    assert found["batch"][2] == {"joint"} and found["window"][2] == {"deferred"}
    assert found["batch"][1] == pytest.approx(found["window"][1], rel=1e-5)
    for name, tensor in found["batch"][0].items():
        torch.testing.assert_close(found["window"][0][name], tensor, rtol=1e-4, atol=1e-6)
