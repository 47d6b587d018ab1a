"""LoRA files in the namings of diffusers, its older scripts, peft and kohya: what they do here is what they do in a
stock pipeline, as a start of training, merged into the base model, and written again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffpref.backbones import Checkpoint, Family, Times, open_backbone
from diffpref.backbones.adapters import LoRA
from diffpref.backbones.adapters.lora_file import read_lora
from diffpref.backbones.loading import bare_network, check_start
from tests import small_sd3, small_sd15, small_sdxl
from tests.backbones.test_family import CASES
from tests.lora_files import matrices, write

SAVE = {"sdxl": small_sdxl, "sd15": small_sd15, "sd3": small_sd3}
STOCK = dict(
    zip(SAVE, ("StableDiffusionXLPipeline", "StableDiffusionPipeline", "StableDiffusion3Pipeline"), strict=True)
)
RANK = 4
READ_BY_DIFFUSERS = [
    *[
        (kind, naming, alpha)
        for kind in SAVE
        for naming, alpha in (("diffusers", 8.0), ("diffusers", None), ("older", None))
    ],
    *[
        (kind, naming, alpha)
        for kind in ("sdxl", "sd15")
        for naming, alpha in (("processor", None), ("kohya", 2.0), ("kohya", None))
    ],
    ("sdxl", "kohya-numbered", 2.0),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: module.save_pipeline(tmp_path_factory.mktemp(kind)) for kind, module in SAVE.items()}


@pytest.fixture(scope="module")
def pipelines(folders: dict[str, Path]) -> dict[str, Any]:
    return {kind: CASES[STOCK[kind]].stock(folder) for kind, folder in folders.items()}


def stock(family: Family, pipeline: Any, file: Path) -> Tensor:
    """What the stock pipeline's network predicts with the file."""
    pipeline.load_lora_weights(file)
    try:
        return answer(family, getattr(pipeline, family.component))
    finally:
        pipeline.unload_lora_weights()


def opened(folder: Path, **changes: Any) -> Family:
    return open_backbone(Checkpoint(str(folder), max_sequence_length=1, **changes), Times(), resolution=small_sdxl.SIZE)


def answer(family: Family, network: Any) -> Tensor:
    """What the network predicts of fixed inputs, on its own without our attention."""
    draws = torch.Generator().manual_seed(5)
    shape = type(family).shape(network.config, 16 * small_sdxl.SIZE // 8, (8, 8, 4), 8)
    x = torch.randn(2, 4, 8, 8, generator=draws)
    cond = {name: torch.randn(2, *size, generator=draws) for name, size in shape.cond.items()}
    cond = family.group_cond({name: value for name, value in cond.items() if name != "time_ids"}, small_sdxl.SIZE)
    t = family.path.at_share(torch.tensor([0.3, 0.7]))
    with torch.no_grad():
        return family.backbone(network.eval())(x, t, cond)


@pytest.mark.parametrize(("kind", "naming", "alpha"), READ_BY_DIFFUSERS)
def test_a_file_does_what_it_does_in_a_stock_pipeline(
    folders: dict[str, Path], pipelines: dict[str, Any], kind: str, naming: str, alpha: float | None, tmp_path: Path
) -> None:
    family, pipeline = opened(folders[kind]), pipelines[kind]
    bare = family.load_network(torch.float32)
    file = write(tmp_path / "x.safetensors", matrices(bare), naming, family.component, alpha)
    theirs = stock(family, pipeline, file)
    assert (theirs - answer(family, bare)).abs().max() > 0.01
    # In the base model, of any rank.
    merged = opened(folders[kind], base_adapters=(str(file),))
    torch.testing.assert_close(answer(family, merged.load_network(torch.float32)), theirs, atol=1e-5, rtol=0)
    # As the start of a LoRA of another alpha, and round: diffusers reads again what we write.
    lora = LoRA(rank=RANK, lora_alpha=6.0, adapter_weights=file)
    lora.attach(bare, family, seed=0)
    torch.testing.assert_close(answer(family, bare), theirs, atol=1e-5, rtol=0)
    lora.save(bare, family, tmp_path / "out")
    torch.testing.assert_close(stock(family, pipeline, tmp_path / "out"), theirs, atol=1e-5, rtol=0)


def test_processors_without_the_networks_name(folders: dict[str, Path], tmp_path: Path) -> None:
    """The oldest files, of `save_attn_procs`, begin with the block."""
    family = opened(folders["sd15"])
    found = matrices(family.load_network(torch.float32))
    tensors = load_file(write(tmp_path / "a.safetensors", found, "processor", "unet", None))
    save_file({name.removeprefix("unet."): tensor for name, tensor in tensors.items()}, tmp_path / "b.safetensors")
    read = read_lora(tmp_path / "b.safetensors", bare_network(family), "unet", key="adapter_weights")
    assert set(read.layers) == set(found)
    for name, (down, up) in found.items():
        assert torch.equal(read.layers[name].down, down) and torch.equal(read.layers[name].up, up)


def test_a_folder_of_pefts(folders: dict[str, Path], tmp_path: Path) -> None:
    family = opened(folders["sd3"])
    found = matrices(family.load_network(torch.float32))
    write(tmp_path / "adapter_model.safetensors", found, "peft-folder", "transformer", 1.0)
    theirs = PeftModel.from_pretrained(family.load_network(torch.float32), str(tmp_path)).base_model.model
    ours = opened(folders["sd3"], base_adapters=(str(tmp_path),)).load_network(torch.float32)
    torch.testing.assert_close(answer(family, ours), answer(family, theirs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("naming", ["kohya", "onetrainer"])
def test_kohyas_names_of_sd3(folders: dict[str, Path], naming: str, tmp_path: Path) -> None:
    """Diffusers does not read them: the matrices and alpha are those of its own file of the same layers."""
    family = opened(folders["sd3"])
    found = matrices(family.load_network(torch.float32))
    outputs = []
    for each in (naming, "diffusers"):
        file = write(tmp_path / f"{each}.safetensors", found, each, "transformer", 2.0)
        outputs.append(answer(family, opened(folders["sd3"], base_adapters=(str(file),)).load_network(torch.float32)))
    assert torch.equal(*outputs)


def test_stabilitys_names_of_sd3(folders: dict[str, Path], tmp_path: Path) -> None:
    """sd-scripts trains SD3 in Stability's code, where one layer makes queries, keys and values: the change of its
    weights is what diffusers' converter of whole checkpoints makes of it."""
    family = opened(folders["sd3"])
    network = bare_network(family)
    width = 16
    draws = torch.Generator().manual_seed(3)
    shapes = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
    }
    tensors: dict[str, Tensor] = {}
    dense = _stability(width)
    for side in ("x", "context"):
        for layer, (o, i) in shapes.items():
            name = f"joint_blocks.0.{side}_block.{layer}"
            down, up = torch.randn(RANK, i, generator=draws), torch.randn(o, RANK, generator=draws)
            key = "lora_unet_" + name.replace(".", "_")
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(2.0)}
            dense[f"{name}.weight"] = up @ down * 2.0 / RANK
    save_file(tensors, tmp_path / "x.safetensors")
    read = read_lora(tmp_path / "x.safetensors", network, "transformer", key="adapter_weights").layers
    changes = {
        name: value for name, value in convert_sd3_transformer_checkpoint_to_diffusers(dense).items() if value.any()
    }
    assert {f"{name}.weight" for name in read} == set(changes)
    for name, layer in read.items():
        torch.testing.assert_close(layer.scale * layer.up @ layer.down, changes[f"{name}.weight"])


def _stability(width: int) -> dict[str, Tensor]:
    """The names that the converter wants of a transformer of two blocks, with zeros."""
    names = ["pos_embed", "x_embedder.proj", "context_embedder", "final_layer.linear", "final_layer.adaLN_modulation.1"]
    names += [f"{embedder}.mlp.{place}" for embedder in ("t_embedder", "y_embedder") for place in (0, 2)]
    for block in range(2):
        for side in ("x", "context"):
            layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
            names += [f"joint_blocks.{block}.{side}_block.{layer}" for layer in layers]
    found = {f"{name}.{kind}": torch.zeros(6 * width) for name in names for kind in ("weight", "bias")}
    return found | {"pos_embed": torch.zeros(1), "context_embedder.weight": torch.zeros(width, 32)}


def test_what_is_no_plain_lora_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    family = opened(folders["sdxl"])
    network = bare_network(family)
    found = matrices(network.to_empty(device="cpu"))
    tensors = load_file(write(tmp_path / "x.safetensors", found, "diffusers", "unet", None))
    first = next(iter(found))
    cases = {
        "DoRA, LoKr, LoHa": {f"unet.{first}.lora_magnitude_vector": torch.ones(4)},
        "another architecture": {f"unet.{first}.lora_A.weight": torch.ones(RANK, 7)},
        "has the layer blocks.0.attn": {
            f"unet.blocks.0.attn.lora_{side}.weight": torch.ones(RANK, RANK) for side in "AB"
        },
    }
    for message, more in cases.items():
        save_file(tensors | more, tmp_path / "y.safetensors")
        with pytest.raises(ValueError, match=message) as caught:
            check_start(opened(folders["sdxl"], base_adapters=(f"{tmp_path}/y.safetensors=0.5",)))
        assert str(caught.value).startswith(f"base_adapters {tmp_path}/y.safetensors") and "\n" not in str(caught.value)


def test_text_encoders_and_alphas_that_diffusers_ignores_are_said(folders: dict[str, Path], tmp_path: Path) -> None:
    family = opened(folders["sdxl"])
    found = matrices(family.load_network(torch.float32))
    tensors = load_file(write(tmp_path / "x.safetensors", found, "kohya", "unet", 4.0))
    tensors |= {"lora_te1_text_model_encoder_layers_0_self_attn_q_proj.alpha": torch.tensor(4.0)}
    changed = next(name for name in tensors if name.endswith("attn2_to_v.alpha"))
    tensors[changed] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "y.safetensors")
    read = read_lora(tmp_path / "y.safetensors", bare_network(family), "unet", key="adapter_weights", values=False)
    texts, alphas = read.remarks
    assert "1 tensors of text encoders are left out" in texts
    assert "another scale (first: " in alphas and "1 in place of 0.25" in alphas
