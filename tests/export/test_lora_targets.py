"""A run's LoRA in each program's form: read by that program's own loader, it draws the trainer's image."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

from tests import lora_table
from tests.export.drawing import LSB, far, stocks, trainers

Runs = Callable[..., Path]
Stock = Callable[..., Any]
Export = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")


def by_diffusers(pipe: Any, place: Path) -> Any:
    pipe.load_lora_weights(place)
    return pipe


def by_peft(pipe: Any, place: Path) -> Any:
    """peft wraps the network; what it wraps holds the layers, and is what a pipeline can call."""
    component = "unet" if hasattr(pipe, "unet") else "transformer"
    whole: Any = PeftModel.from_pretrained(getattr(pipe, component), str(place))
    pipe.register_modules(**{component: whole.merge_and_unload()})
    return pipe


def by_comfyui(pipe: Any, place: Path) -> Any:
    """ComfyUI's rule takes every tensor of the file."""
    assert not lora_table.merge(pipe.unet if hasattr(pipe, "unet") else pipe.transformer, place)
    return pipe


READERS = {"diffusers": by_diffusers, "comfyui": by_comfyui, "kohya": by_comfyui, "peft": by_peft}
FAST = [("sdxl", "diffusers"), ("sdxl", "kohya"), ("sdxl", "peft"), ("sd3", "comfyui")]
SLOW = [("sdxl", "comfyui"), ("sd3", "diffusers"), ("sd3", "peft"), *(("sd15", to) for to in READERS)]
CASES = [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


@pytest.mark.parametrize(("family", "to"), CASES)
def test_each_reader_draws_the_trainers_image(runs: Runs, stock: Stock, export: Export, family: str, to: str) -> None:
    run = runs(family, lora_alpha=8)
    wanted = trainers(run)
    assert far(stocks(stock(family)), wanted) > 4 * LSB, "training has changed nothing that can be seen"
    place = export(run, to=to)
    assert far(stocks(READERS[to](stock(family), place)), wanted) <= LSB
    if family != "sd3" and to in ("comfyui", "kohya"):
        assert far(stocks(by_diffusers(stock(family), place)), wanted) <= LSB


def test_kohyas_file_keeps_alpha_and_matrices(runs: Runs, export: Export) -> None:
    run = runs("sdxl", lora_alpha=8)
    place = export(run, to="kohya")
    ours, before = load_file(place), load_file(run / "pytorch_lora_weights.safetensors")
    assert {name.partition(".")[0] for name in ours} == {name.partition(".")[0] for name in before}
    assert all(torch.equal(ours[name], before[name]) for name in before)
    assert {ours[name].item() for name in ours if name.endswith("alpha")} == {8.0}
    with safe_open(place, "pt") as file:
        assert file.metadata()["ss_base_model_version"] == "sdxl_base_v1-0"


def test_half_precision_and_pefts_config(runs: Runs, export: Export) -> None:
    place = export(runs("sdxl", lora_alpha=8), to="peft", dtype="float16")
    assert {tensor.dtype for tensor in load_file(place / "adapter_model.safetensors").values()} == {torch.float16}
    config = json.loads((place / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)


@pytest.mark.slow
def test_from_one_form_to_another_and_back(runs: Runs, stock: Stock, bases: Any, export: Export) -> None:
    """A folder of peft and files of any naming go in as well, with their base named."""
    run = runs("sdxl", lora_alpha=8)
    wanted, given = trainers(run), run
    for to in ("peft", "kohya", "diffusers", "comfyui"):
        given = export(given, to=to, name=to, base=bases("sdxl"))
    assert far(stocks(by_diffusers(stock(), given)), wanted) <= LSB
