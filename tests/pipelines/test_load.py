"""`load`: what is loaded where, and what is refused before the pipeline changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffpref.pipelines import load
from tests import small_sdxl

Runs = Callable[..., Path]
Stock = Callable[..., Any]


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_the_scale_is_the_loras_weight(stock: Stock, runs: Runs) -> None:
    pipe = load(stock(), runs(), scale=0.25)
    layer = next(part for part in pipe.unet.modules() if hasattr(part, "lora_A") and part.lora_A)
    assert layer.scaling["preference"] == 0.25 and pipe.get_active_adapters() == ["preference"]
    load(pipe, runs(), scale=2)
    assert (layer.scaling["preference"], layer.scaling["preference_2"]) == (0.25, 2)


def test_the_scale_of_a_whole_network_is_between_the_weights(stock: Stock, runs: Runs) -> None:
    run = runs("sdxl", "full")
    base, tuned = weights(stock()), load_file(run / "unet" / "diffusion_pytorch_model.safetensors")
    for scale in (1.0, 0.5):
        found = weights(load(stock(), run, scale=scale))
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, base[name] + scale * (tuned[name] - base[name]), atol=1e-6, rtol=1e-5)


def test_another_base_is_refused_and_changes_nothing(stock: Stock, runs: Runs, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    other = DiffusionPipeline.from_pretrained(small_sdxl.save_pipeline(tmp_path / "other", seed=9))
    before = weights(other)
    with pytest.raises(ValueError, match=r"was trained over .* and the pipeline has other weights .*same_base=False"):
        load(other, runs())
    assert weights(other).keys() == before.keys()
    assert load(other, runs(), same_base=False).get_active_adapters() == ["preference"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_same_base_elsewhere_and_in_half_precision_is_accepted(
    stock: Stock, runs: Runs, tmp_path: Path, dtype: torch.dtype
) -> None:
    from diffusers import DiffusionPipeline

    stock().save_pretrained(tmp_path / "moved")
    moved = DiffusionPipeline.from_pretrained(tmp_path / "moved", dtype=dtype)
    assert load(moved, runs()).get_active_adapters() == ["preference"]


@pytest.mark.parametrize("family", ["sd15", "sd3"])
def test_another_family_is_refused(stock: Stock, runs: Runs, family: str, tmp_path: Path) -> None:
    file = runs() / "pytorch_lora_weights.safetensors"
    (tmp_path / file.name).write_bytes(file.read_bytes())
    for given in (tmp_path, tmp_path / file.name):
        with pytest.raises(ValueError, match="LoRA of another family"):
            load(stock(family), given)
    with pytest.raises(ValueError, match="other weights|has no .*transformer"):
        load(stock(family), runs("sdxl", "full"))


def test_what_is_no_result_is_refused(stock: Stock, runs: Runs, tmp_path: Path) -> None:
    import shutil

    pipe = stock()
    with pytest.raises(ValueError, match="no such folder or file, and no name on the hub"):
        load(pipe, tmp_path / "nothing")
    with pytest.raises(ValueError, match="could not be read from the hub"):
        load(pipe, "nobody/nothing")
    with pytest.raises(ValueError, match="has no pytorch_lora_weights.safetensors and no unet/"):
        load(pipe, tmp_path)
    shutil.copytree(runs(), tmp_path / "stopped", ignore=shutil.ignore_patterns("done.json"))
    with pytest.raises(ValueError, match="holds no finished run"):
        load(pipe, tmp_path / "stopped")
