"""The folder of a run in rounds holds its result, as that of any run: stock diffusers and load_policy read it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DModel
from safetensors.torch import load_file

from diffpref import load_policy
from diffpref.backbones.adapters.lora import LORA_FILE, lora_state
from diffpref.training.config import TrainConfig
from tests.small_sdxl import SIZE, save_pairs
from tests.sources.conftest import start
from tests.sources.test_self_play import falling

Make = Callable[..., TrainConfig]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def same(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def loaded(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The LoRA of a stock pipeline."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(base)
    pipeline.load_lora_weights(folder, adapter_name="default")
    return lora_state(pipeline.unet)


@pytest.mark.slow
def test_d3po(d3po: Make, bases: dict[str, Path]) -> None:
    config = d3po()
    run = config.run.output_dir
    done = start(config)
    assert done == run / "round-2" / "train"
    assert same(run / LORA_FILE, done / LORA_FILE) and not same(run / LORA_FILE, run / "round-1" / "train" / LORA_FILE)
    found = loaded(bases["sdxl"], run)
    assert found and all(tensor.any() for tensor in found.values())
    card = (run / "README.md").read_text()
    assert f'folder = "{run}"' in card and "load_lora_weights(folder)" in card
    assert json.loads((run / "done.json").read_text())["result"] == "round-2/train"
    policy, reference, *_ = load_policy(run, device="cpu")
    network: Any = policy.model.network
    state = lora_state(network)
    assert all(torch.equal(state[name], tensor) for name, tensor in found.items())
    assert isinstance(reference.model.network, type(network))
    # Another round takes the place of the second.
    assert start(d3po(rounds=3)) == run / "round-3" / "train"
    assert same(run / LORA_FILE, run / "round-3" / "train" / LORA_FILE) and not same(run / LORA_FILE, done / LORA_FILE)


def test_ddo_of_all_weights(ddo: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    falling(monkeypatch, [9.0, 5.0, 7.0, 5.0, 6.0, 4.0])
    config = ddo()
    run = config.run.output_dir
    assert start(config) == run / "round-2" / "best"
    assert same(run / WEIGHTS, run / "round-2" / "best" / WEIGHTS)
    network = UNet2DModel.from_pretrained(run, subfolder="unet")
    policy, reference, *_ = load_policy(run, device="cpu")
    for mine, wanted in ((policy, run), (reference, run / "round-1" / "best")):
        found = mine.model.network.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in load_file(wanted / WEIGHTS).items())
    assert network.config == policy.model.network.config or len(network.state_dict()) == len(found)


def test_a_game_that_ends_leaves_the_better_round(ddo: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    falling(monkeypatch, [9.0, 5.0, 7.0, 5.0, 6.0, 8.0])
    config = ddo()
    run = config.run.output_dir
    assert start(config) == run / "round-1" / "best"
    assert same(run / WEIGHTS, run / "round-1" / "best" / WEIGHTS)


def test_ddo_of_a_lora(ddo: Make, bases: dict[str, Path], tmp_path: Path) -> None:
    pairs = save_pairs(tmp_path / "pairs", count=4)
    base = {"pretrained_model_name_or_path": str(bases["sdxl"]), "dataset_name": str(pairs), "resolution": SIZE}
    config = ddo(**base, adapter="lora", rank=4, rounds=1)
    done, run = start(config), config.run.output_dir
    assert done == run / "round-1" / "best" and same(run / LORA_FILE, done / LORA_FILE)
    assert loaded(bases["sdxl"], run)
    assert load_policy(run, device="cpu").policy is not None
