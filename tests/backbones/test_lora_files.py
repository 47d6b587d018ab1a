"""The file of a LoRA in every reader: diffusers, ComfyUI's and A1111's tables of names, and our own.

ComfyUI merges alpha / rank of up @ down of what stands under the names of its table. The tables here are built by
numbers from the published layout of each network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffpref.backbones import Checkpoint, Family, Times, open_backbone
from diffpref.backbones.adapters import LoRA
from diffpref.backbones.adapters.lora import ADAPTER, LORA_FILE, attach_lora, lora_state, trainable
from diffpref.backbones.sd3 import SD3
from diffpref.backbones.sd15 import SD15
from diffpref.backbones.sdxl import SDXL
from diffpref.counting.architectures import SD35_TRANSFORMER, SDXL_UNET
from tests import lora_table, small_sd3, small_sd15, small_sdxl

SD15_UNET: Mapping[str, Any] = {"cross_attention_dim": 768}
WORLDS: Mapping[str, Any] = {
    "sdxl": (small_sdxl, StableDiffusionPipeline),
    "sd15": (small_sd15, StableDiffusionPipeline),
    "sd3": (small_sd3, StableDiffusion3Pipeline),
}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("family", "config", "layers"), [(SDXL, SDXL_UNET, 560), (SD15, SD15_UNET, 128)], ids=["sdxl", "sd15"]
)
def test_every_layer_of_the_published_networks_has_a_name_in_the_tables(
    family: Any, config: Mapping[str, Any], layers: int, tmp_path: Path
) -> None:
    with torch.device("meta"):
        network = UNet2DConditionModel(**{key: value for key, value in config.items() if key[0] != "_"})
        attach_lora(network, 1, family.lora_targets, seed=0)
    _only_the_lora(network)
    family(Checkpoint("")).save_lora(network, tmp_path)
    names = {name.partition(".")[0] for name in load_file(tmp_path / LORA_FILE)}
    table = lora_table.unet_table(network.config)
    assert names == set(table) and len(set(table.values())) == layers


def _only_the_lora(network: torch.nn.Module) -> None:
    """The LoRA's matrices with numbers, the network's own without."""
    for module in network.modules():
        for name in ("lora_A", "lora_B"):
            if isinstance(part := getattr(module, name, None), torch.nn.Module):
                part.to_empty(device="cpu")


def test_every_layer_of_sd35_has_a_name_in_comfyuis_table(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = SD3Transformer2DModel(**{key: value for key, value in SD35_TRANSFORMER.items() if key[0] != "_"})
        attach_lora(network, 1, SD3.lora_targets, seed=0)
    _only_the_lora(network)
    SD3(Checkpoint("")).save_lora(network, tmp_path)
    streams = {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}
    table = {f"transformer.transformer_blocks.{block}.attn.{part}" for block in range(24) for part in streams}
    names = {name.rpartition(".lora_")[0] for name in load_file(tmp_path / LORA_FILE)}
    # The last block has no way out of its text stream.
    assert table - names == {"transformer.transformer_blocks.23.attn.to_add_out"} and names <= table


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Family]:
    folders = {world: of.save_pipeline(tmp_path_factory.mktemp(world)) for world, (of, _) in WORLDS.items()}
    size = small_sdxl.SIZE
    return {
        world: open_backbone(Checkpoint(str(folder)), Times(), resolution=size) for world, folder in folders.items()
    }


@pytest.fixture
def family(world: str, opened: Mapping[str, Family]) -> Family:
    return opened[world]


@pytest.fixture
def sdxl(opened: Mapping[str, Family]) -> Family:
    return opened["sdxl"]


def trained(family: Family, *, alpha: int = 4) -> Any:
    """The family's network with a LoRA that does something."""
    network: Any = family.load_network(torch.float32)
    network.requires_grad_(False)
    config = LoraConfig(r=4, lora_alpha=alpha, target_modules=list(family.lora_targets))
    network.add_adapter(config, adapter_name=ADAPTER)
    for place, parameter in enumerate(trainable(network)):
        parameter.data = 0.3 * normal(*parameter.shape, seed=place)
    return network.eval()


@torch.no_grad()
def answer(family: Family, network: Any) -> Tensor:
    prompts = family.load_encoder(torch.device("cpu")).encode_prompts(["red cat", "a dog"])
    x = normal(2, *family.load_decoder(network, torch.device("cpu")).latent_shape(small_sdxl.SIZE), seed=9)
    t = torch.stack([family.draw_t(torch.Generator().manual_seed(place)) for place in range(2)])
    return family.backbone(network)(x, t, family.group_cond(prompts, small_sdxl.SIZE))


def merged(family: Family, file: Path) -> tuple[Any, set[str]]:
    """A bare network with the file merged as ComfyUI does, and the tensors that it did not take."""
    network: Any = family.load_network(torch.float32).eval()
    return network, lora_table.merge(network, file)


@pytest.mark.parametrize("alpha", [4, 8])
def test_a_reader_that_merges_by_its_table_takes_every_tensor_at_the_trained_scale(
    family: Family, tmp_path: Path, alpha: int
) -> None:
    network = trained(family, alpha=alpha)
    family.save_lora(network, tmp_path)
    bare, left = merged(family, tmp_path / LORA_FILE)
    assert not left
    after = answer(family, network)
    torch.testing.assert_close(answer(family, bare), after, atol=1e-5, rtol=1e-5)
    network.disable_adapters()
    assert (answer(family, network) - after).abs().max() > 1e-2


def test_diffusers_reads_it_as_the_file_that_it_writes_itself(family: Family, world: str, tmp_path: Path) -> None:
    network, kind = trained(family), WORLDS[world][1]
    family.save_lora(network, tmp_path)
    layers = {f"{family.component}_lora_layers": dict(lora_state(network))}
    kind.save_lora_weights(tmp_path / "own", **layers)
    found = by_diffusers(family, tmp_path)
    assert torch.equal(found, by_diffusers(family, tmp_path / "own"))
    torch.testing.assert_close(found, answer(family, network), atol=1e-6, rtol=1e-6)
    louder = trained(family, alpha=8)
    family.save_lora(louder, tmp_path)
    torch.testing.assert_close(by_diffusers(family, tmp_path), answer(family, louder), atol=1e-5, rtol=1e-5)


def by_diffusers(family: Family, folder: Path) -> Tensor:
    """What the stock pipeline's network answers with the LoRA of the folder."""
    pipeline = stock(family)
    pipeline.load_lora_weights(folder)
    return answer(family, getattr(pipeline, family.component))


def stock(family: Family) -> Any:
    absent: Any = {"text_encoder_3": None, "tokenizer_3": None} if isinstance(family, SD3) else {}
    return DiffusionPipeline.from_pretrained(family.checkpoint.source, **absent)


def test_a_run_starts_from_what_a_run_wrote(family: Family, tmp_path: Path) -> None:
    network = trained(family)
    family.save_lora(network, tmp_path)
    again: Any = family.load_network(torch.float32)
    LoRA(rank=4, adapter_weights=tmp_path, lora_backend="peft").attach(again, family, seed=7)
    wanted, found = lora_state(network), lora_state(again)
    assert wanted.keys() == found.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_kohyas_alpha_is_read(sdxl: Family, tmp_path: Path) -> None:
    network = trained(sdxl, alpha=8)
    sdxl.save_lora(network, tmp_path)
    again: Any = sdxl.load_network(torch.float32)
    LoRA(rank=4, adapter_weights=tmp_path / LORA_FILE, lora_backend="peft").attach(again, sdxl, seed=7)
    torch.testing.assert_close(answer(sdxl, again), answer(sdxl, network), atol=1e-6, rtol=1e-6)


def test_a_file_by_pefts_names_of_an_older_run_is_read(sdxl: Family, tmp_path: Path) -> None:
    network = trained(sdxl)
    save_file({f"unet.{name}": tensor for name, tensor in lora_state(network).items()}, tmp_path / LORA_FILE)
    again: Any = sdxl.load_network(torch.float32)
    LoRA(rank=4, adapter_weights=tmp_path).attach(again, sdxl, seed=7)
    assert all(torch.equal(lora_state(again)[name], tensor) for name, tensor in lora_state(network).items())


@pytest.mark.parametrize(("world", "base"), [("sdxl", "sdxl_base_v1-0"), ("sd15", "sd_v1")])
def test_a1111_sorts_it_under_its_base(family: Family, base: str, tmp_path: Path) -> None:
    family.save_lora(trained(family, alpha=8), tmp_path)
    with safe_open(tmp_path / LORA_FILE, "pt") as file:
        notes = file.metadata()
    assert (notes["ss_base_model_version"], notes["ss_v2"]) == (base, "False")
    assert (notes["ss_network_dim"], float(notes["ss_network_alpha"])) == ("4", 8.0)
    second = UNet2DConditionModel(**{**small_sd15.small_unet().config, "cross_attention_dim": 1024})
    assert SD15(Checkpoint("")).version(second) == "sd_v2"


@pytest.mark.parametrize("targets", [("ff.net.0.proj", "conv1"), ("add_embedding.linear_1", "time_embedding.linear_2")])
def test_other_layers_than_attention_go_the_same_way(sdxl: Family, targets: tuple[str, ...], tmp_path: Path) -> None:
    network: Any = sdxl.load_network(torch.float32)
    attach_lora(network, 4, targets, seed=0)
    for place, parameter in enumerate(trainable(network)):
        parameter.data = 0.3 * normal(*parameter.shape, seed=place)
    sdxl.save_lora(network.eval(), tmp_path)
    torch.testing.assert_close(by_diffusers(sdxl, tmp_path), answer(sdxl, network), atol=1e-5, rtol=1e-5)
