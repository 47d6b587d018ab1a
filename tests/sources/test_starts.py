"""Rounds that go on from a last one in several files, and from one with base adapters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from diffpref import load_policy
from diffpref.backbones.adapters import full
from diffpref.backbones.adapters.base_adapters import TRAINED_FILE
from diffpref.training.config import TrainConfig
from diffpref.training.settings import from_yaml
from tests.lora_files import matrices, write
from tests.small_sdxl import read_metrics, small_unet
from tests.sources.conftest import start

Make = Callable[..., TrainConfig]


@pytest.fixture
def style(tmp_path: Path) -> str:
    file = write(
        tmp_path / "style.safetensors", matrices(small_unet(), ("to_q", "conv1"), rank=3), "kohya", "unet", 2.0
    )
    return f"{file}=0.5"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["d3po", "ddo"])
def test_a_round_goes_on_from_shards(
    method: str, d3po: Make, ddo: Make, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full, "SHARD", "20KB")
    config = d3po(adapter="full", base_adapters=[style]) if method == "d3po" else ddo(measure="")
    done = start(config)
    out = config.run.output_dir
    first, second = out / "round-1" / "train", out / "round-2" / "train"
    for folder in (first, second):
        assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    model = from_yaml(second / "config.yaml").model
    # The whole network has its base adapters in it already: they are added once.
    assert done == second and model.network_weights == first and model.base_adapters == ()
    assert read_metrics(second)[0]["error/chosen/ratio" if method == "d3po" else "rewards/margins"] == pytest.approx(
        1.0 if method == "d3po" else 0.0, abs=1e-4
    )
    loaded: Any = load_policy(out, device="cpu")
    before: Any = load_policy(first, device="cpu")
    for name, tensor in before.policy.model.network.state_dict().items():
        assert torch.equal(loaded.reference.model.network.state_dict()[name], tensor), name


@pytest.mark.slow
def test_rounds_of_lora_over_base_adapters(d3po: Make, style: str) -> None:
    config = d3po(base_adapters=[style], learning_rate=3e-2, lora_alpha=8)
    done = start(config)
    first = done.parents[1] / "round-1" / "train"
    again = from_yaml(done / "config.yaml")
    # What was trained goes on; the reference stays the base with its adapters.
    assert again.adapter.adapter_weights == first / TRAINED_FILE
    assert again.model.base_adapters == (style,)
    network: Any = load_policy(config.run.output_dir, device="cpu").policy.model.network  # type: ignore[attr-defined]
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(config.model.pretrained_model_name_or_path)
    pipeline.load_lora_weights(done)
    draws = torch.Generator().manual_seed(0)
    added = {"text_embeds": torch.randn(2, 16, generator=draws), "time_ids": torch.full((2, 6), 32.0)}
    x, text = torch.randn(2, 4, 8, 8, generator=draws), torch.randn(2, 8, 32, generator=draws)
    with torch.no_grad():
        theirs, ours = (unet.eval()(x, 300, text, added_cond_kwargs=added).sample for unet in (pipeline.unet, network))
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
