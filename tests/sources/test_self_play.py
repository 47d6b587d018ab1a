"""DDO's self-play: fakes of the reference, the best step as the next reference, kills and refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffpref.backbones import Family
from diffpref.backbones.adapters.lora import LORA_FILE
from diffpref.backbones.edm import EDM
from diffpref.backbones.prompts import collate
from diffpref.engine.step import Engine
from diffpref.run.randomness import generator
from diffpref.sources import fakes, self_play
from diffpref.training import loop
from diffpref.training.config import TrainConfig
from tests.small_sdxl import SIZE, read_metrics, save_pairs
from tests.sources.conftest import opened, start

Make = Callable[..., TrainConfig]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def falling(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """A measure that gives these values in turn, and then the last."""
    left = list(values)
    monkeypatch.setattr(
        self_play, "find_measure", lambda *given: lambda *drawn: left.pop(0) if len(left) > 1 else left[0]
    )


def history(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "self_play.json").read_text())["rounds"]


def test_the_best_step_is_the_next_reference(ddo: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    falling(monkeypatch, [9.0, 5.0, 7.0, 5.0, 6.0, 4.0])
    config = ddo()
    out, seen = config.run.output_dir, []
    build = loop.build_models

    def spy(family: Family, *rest: Any, **options: Any) -> Any:
        models = build(family, *rest, **options)
        weights = {name: tensor.clone() for name, tensor in models.network.state_dict().items()}
        seen.append((family.checkpoint.network_weights, weights))
        return models

    monkeypatch.setattr(loop, "build_models", spy)
    best = start(config)
    first, second = history(out)
    assert first["measures"] == {"0": 9.0, "2": 5.0, "4": 7.0} and first["best_step"] == 2
    assert second["measures"] == {"0": 5.0, "2": 6.0, "4": 4.0} and second["best_step"] == 4
    assert best == out / "round-2" / "best" == out / second["best"]
    (none, _), (named, weights) = seen
    assert none is None and named == out / "round-1" / "best"
    saved = load_file(out / "round-1" / "best" / WEIGHTS)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in saved.items())
    last = load_file(out / "round-1" / "train" / WEIGHTS)
    assert any(not torch.equal(tensor, last[name]) for name, tensor in saved.items())
    for number in (1, 2):
        # Policy and reference agree again: (1 + alpha) log 2.
        metrics = read_metrics(out / f"round-{number}" / "train")[0]
        assert metrics["loss"] == pytest.approx(5 * 0.6931472, rel=1e-5)
        # Two copies of the weights on two threads: convolutions may differ in the last bit.
        assert abs(metrics["rewards/margins"]) < 1e-4
    # Started again, nothing is trained; with overwrite_output_dir, all.
    monkeypatch.setattr(loop, "fit", lambda *given, **options: pytest.fail("trained again"))
    assert start(config) == best
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        start(ddo(overwrite_output_dir=True))


def test_a_round_without_improvement_ends_the_game(ddo: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    falling(monkeypatch, [9.0, 5.0, 7.0, 5.0, 6.0, 5.0, 1.0])
    config, said = ddo(rounds=3), []
    assert start(config, said) == config.run.output_dir / "round-1" / "best"
    assert len(history(config.run.output_dir)) == 2 and "round 2 did not improve" in said[-1]


@pytest.mark.parametrize("at", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(7, marks=pytest.mark.slow)])
def test_a_killed_round_goes_on_exactly(ddo: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at: int) -> None:
    straight = start(ddo(output_dir=str(tmp_path / "straight")))
    take, calls = Engine.step, []

    def dies(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return take(*arguments)

    monkeypatch.setattr(Engine, "step", dies)
    try:
        start(ddo())
    except KeyboardInterrupt:
        done = start(ddo())
        one, other = load_file(straight / WEIGHTS), load_file(done / WEIGHTS)
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
        for mine, theirs in zip(history(tmp_path / "straight"), history(tmp_path / "run"), strict=True):
            assert mine["measures"] == theirs["measures"] and mine["best_step"] == theirs["best_step"]


def test_killed_between_a_round_and_its_line(ddo: Make) -> None:
    config = ddo(rounds=1, checkpointing_steps=500)
    best = start(config)
    before = history(config.run.output_dir)
    (config.run.output_dir / "self_play.json").unlink()
    assert start(config) == best and history(config.run.output_dir) == before


def test_fakes_are_the_references_samples(ddo: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    encode = fakes.Fakes.encode

    def spy(self: Any, *arguments: Any) -> Any:
        kept.append((arguments, encode(self, *arguments)))
        return kept[-1][1]

    monkeypatch.setattr(fakes.Fakes, "encode", spy)
    config = ddo(rounds=1, samples_per_round=5, measure="")
    assert start(config) == config.run.output_dir / "round-1" / "train"
    (_given, encoded) = kept[0]
    data, family = encoded.groups.encoded, opened(config)
    assert len(data) == 5
    groups = [data.group(place, mirrored=False) for place in range(5)]
    assert [scores for _, _, scores in groups] == [(1.0, 0.0)] * 5
    x0, prompts = torch.stack([images for images, _, _ in groups]).float(), collate([prompt for _, prompt, _ in groups])
    network = family.load_network(torch.float32)
    seeds = [generator(0, "fake", 1, place).initial_seed() for place in range(5)]
    # The fakes are what the reference draws, through the pixels and the encoder that the real ones came through.
    drawn = family.load_decoder(network, torch.device("cpu")).sample(
        prompts,
        encoded.empty,
        resolution=config.data.resolution,
        seeds=seeds,
        steps=2,
        guidance_scale=1.0,
        batch_size=5,
    )
    pixels = torch.stack([torch.from_numpy(np.array(picture.convert("RGB"))) for picture in drawn])
    encoder = family.load_encoder(torch.device("cpu"))
    latents = encoder.encode_pictures(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, [])
    # Batches differ in the last bit of a float, and that in one of 255 levels.
    torch.testing.assert_close(x0[:, 1], latents, rtol=0, atol=1.01 / 127.5)
    assert x0[:, 0].abs().max() <= 1 and len(set(seeds)) == 5


def test_a_lora_round_with_pairs_as_real_pictures(ddo: Make, bases: dict[str, Path], tmp_path: Path) -> None:
    done = start(
        ddo(
            pretrained_model_name_or_path=str(bases["sdxl"]),
            dataset_name=str(save_pairs(tmp_path / "pairs", count=4)),
            resolution=SIZE,
            adapter="lora",
            rank=4,
            rounds=1,
        )
    )
    assert (done / LORA_FILE).is_file() or (done / "pytorch_lora_weights.safetensors").is_file()
    assert isinstance(opened(ddo()), EDM)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixed_precision": "bf16"}, "set mixed_precision: no"),
        ({"random_flip": True}, "set random_flip: false"),
        ({"adapter": "lora"}, "set adapter: full, or rounds: 1"),
        ({"adapter": "lora", "rounds": 1}, "set adapter: full"),
        ({"rounds": 0}, "rounds must be 1 or above, got 0"),
        ({"dataset_name": ""}, "DDO needs real images"),
        ({"dataset_name": "/nowhere"}, "/nowhere"),
        ({"samples_per_round": -1}, "samples_per_round must be 0 or above"),
        ({"measure_samples": 1}, "measure_samples must be 2 or above"),
        ({"measure": "fid"}, "measure must be one of"),
        ({"probe": "transition"}, "set probe: forward or inversion"),
        ({"resume_from_checkpoint": "checkpoint-1"}, "leave resume_from_checkpoint out"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    ddo: Make, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(EDM, "load_network", lambda *arguments: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=message):
        start(ddo(**changes))
    assert not (tmp_path / "run").exists()
