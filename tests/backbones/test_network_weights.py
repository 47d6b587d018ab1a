"""network_weights: whole, in shards, as a variant, a file, on the hub; pickles and other networks are refused."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from diffpref.backbones import Checkpoint
from diffpref.backbones.loading import check_start
from diffpref.backbones.sdxl import SDXL
from tests.small_sdxl import small_unet

WHOLE = "diffusion_pytorch_model.safetensors"
INDEX = f"{WHOLE}.index.json"


@pytest.fixture(scope="module")
def network() -> UNet2DConditionModel:
    torch.manual_seed(7)
    return small_unet()


def check_equal(base: Checkpoint, weights: Path, network: Any) -> None:
    """The network that training starts from has these weights, to the precision that they were saved in."""
    family = SDXL(Checkpoint(base.source, network_weights=weights))
    assert check_start(family) == []
    found = family.load_network(torch.float32).state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(found[name], tensor.to(found[name])), name


def shards(folder: Path, network: Any, **options: Any) -> Path:
    network.save_pretrained(folder, max_shard_size="100KB", **options)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def test_shards(base: Checkpoint, network: UNet2DConditionModel, tmp_path: Path) -> None:
    folder = shards(tmp_path / "unet", network)
    for weights in (tmp_path, folder, folder / INDEX):
        check_equal(base, weights, network)
    last = sorted(folder.glob("*.safetensors"))[-1]
    last.unlink()
    with pytest.raises(ValueError, match=f"names {last.name}, which is not beside it: copy all"):
        check_start(SDXL(Checkpoint(base.source, network_weights=tmp_path)))


def test_a_variant(base: Checkpoint, network: UNet2DConditionModel, tmp_path: Path) -> None:
    half = UNet2DConditionModel.from_config(network.config)
    half.load_state_dict(network.state_dict())
    half.half().save_pretrained(tmp_path / "whole" / "unet", variant="fp16")
    shards(tmp_path / "parts" / "unet", half, variant="fp16")
    for name in ("whole", "parts"):
        check_equal(base, tmp_path / name, half)
    # Full precision counts where both are there.
    network.save_pretrained(tmp_path / "whole" / "unet")
    check_equal(base, tmp_path / "whole", network)


def test_a_file_of_any_name(base: Checkpoint, network: UNet2DConditionModel, tmp_path: Path) -> None:
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    check_equal(base, tmp_path / "mine.safetensors", network)


def test_a_name_on_the_hub(
    base: Checkpoint, network: UNet2DConditionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network the hub's cache is read as it is."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    commit, kept = "0" * 40, tmp_path / "models--me--tuned"
    shards(kept / "snapshots" / commit / "unet", network)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    check_equal(base, Path("me/tuned"), network)
    with pytest.raises(ValueError, match="network_weights me/other: no such folder, and it could not be read from"):
        check_start(SDXL(Checkpoint(base.source, network_weights=Path("me/other"))))


def test_pickles_are_not_read(base: Checkpoint, network: UNet2DConditionModel, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path / "unet", safe_serialization=False)
    (file,) = (tmp_path / "unet").glob("*.bin")
    shutil.copy(file, tmp_path / "mine.ckpt")
    for weights in (tmp_path, tmp_path / "mine.ckpt"):
        with pytest.raises(ValueError, match="is a pickle, which can run code when it is read: save it as safetensors"):
            check_start(SDXL(Checkpoint(base.source, network_weights=weights)))


def test_another_architecture_is_refused(base: Checkpoint, network: UNet2DConditionModel, tmp_path: Path) -> None:
    tensors = network.state_dict()
    first = next(iter(tensors))
    cases = {
        f"has extra.weight, which the base model's {type(network).__name__} has not": {"extra.weight": torch.ones(1)},
        rf"{first} has the shape \(3, 5\), and \(16, 4, 3, 3\) in the base model": {first: torch.ones(3, 5)},
        f"has no {first}, which the base model's": {first: None},
        "is a whole checkpoint in Stability's names": {"model.diffusion_model.out.0.weight": torch.ones(1)},
    }
    for message, change in cases.items():
        changed = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
        save_file(changed, tmp_path / "x.safetensors")
        family = SDXL(Checkpoint(base.source, network_weights=tmp_path / "x.safetensors"))
        for read in (check_start, lambda one: one.load_network(torch.float32)):
            with pytest.raises(ValueError, match=message) as caught:
                read(family)
            assert "\n" not in str(caught.value)
