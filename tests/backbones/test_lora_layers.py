"""LoRA layers computed as one operation inside real networks: peft's numbers, names, switches and exceptions."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.tuners import lora
from safetensors import safe_open

from diffpref.backbones import Checkpoint
from diffpref.backbones.adapters import trainable
from diffpref.backbones.adapters.lora import attach_lora
from diffpref.backbones.adapters.lora_layers import FusedLinear, fuse_lora
from diffpref.backbones.sd3 import SD3
from diffpref.backbones.sdxl import SDXL
from tests import small_sd3, small_sdxl

Inputs = dict[str, object]


def unet(**changes: object) -> tuple[UNet2DConditionModel, Inputs]:
    torch.manual_seed(0)
    network = UNet2DConditionModel.from_config({**small_sdxl.small_unet().config, **changes})
    added = {"text_embeds": torch.randn(2, 16), "time_ids": torch.ones(2, 6)}
    inputs = {"sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([10, 900])}
    return network, {**inputs, "encoder_hidden_states": torch.randn(2, 8, 32), "added_cond_kwargs": added}


def transformer() -> tuple[SD3Transformer2DModel, Inputs]:
    torch.manual_seed(0)
    inputs = {"hidden_states": torch.randn(2, 4, 8, 8), "encoder_hidden_states": torch.randn(2, 5, 32)}
    inputs |= {"pooled_projections": torch.randn(2, 32), "timestep": torch.tensor([10.0, 900.0])}
    return small_sd3.small_transformer(), inputs


NETWORKS = {"sdxl": (unet, SDXL.lora_targets), "sd3": (transformer, SD3.lora_targets)}


def shake(network: torch.nn.Module, scale: float = 1.0) -> None:
    """Give the adapter some effect, at another scale than 1."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trainable(network):
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    for layer in network.modules():
        if isinstance(layer, lora.LoraLayer):
            layer.scaling["default"] = scale


def cast(value: object, dtype: torch.dtype) -> object:
    if isinstance(value, dict):
        return {name: cast(part, dtype) for name, part in value.items()}
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def run(network: torch.nn.Module, inputs: Inputs, dtype: torch.dtype) -> list[torch.Tensor]:
    """The output and the gradients of its mean square by the adapter."""
    network.zero_grad()
    output = network(**cast(inputs, dtype), return_dict=False)[0]
    output.float().square().mean().backward()
    return [output.detach(), *(p.grad for p in trainable(network) if p.grad is not None)]


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_are_pefts(name: str, dtype: torch.dtype, tolerance: float, scale: float) -> None:
    make, targets = NETWORKS[name]
    results = []
    for backend in ("peft", "fused"):
        network, inputs = make()
        line = attach_lora(network, 4, targets, seed=0, backend=backend)
        network.to(dtype)
        shake(network, scale)
        results.append(run(network, inputs, dtype))
    count = sum(isinstance(m, FusedLinear) for m in network.modules())
    assert line == f"LoRA: {count} of {count} layers fused" and 2 * count == len(trainable(network))
    assert len(results[0]) == len(results[1]) == 1 + 2 * count
    for exact, value in zip(*results, strict=True):
        assert (value - exact).abs().max() <= tolerance * exact.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision_is_as_near_float32_as_pefts_and_gradients_are_float32(name: str) -> None:
    make, targets = NETWORKS[name]
    ends = []
    for dtype, backend in ((torch.float32, "peft"), (torch.bfloat16, "peft"), (torch.bfloat16, "fused")):
        network, inputs = make()
        network.to(dtype)
        attach_lora(network, 4, targets, seed=0, backend=backend)
        shake(network)
        result = run(network, inputs, dtype)
        assert {value.dtype for value in result[1:]} == {torch.float32}
        ends.append(torch.cat([value.flatten() for value in result]))
    exact, pefts, ours = ends
    # peft's adapter computes in float32, ours in bfloat16 as the base does: about as much again.
    assert (ours - exact).norm() < 2 * (pefts - exact).norm() < 0.5 * exact.norm()


def test_the_reference_is_the_base_and_the_file_is_pefts(base: Checkpoint, tmp_path: Path) -> None:
    states, folders = {}, {}
    for backend in ("peft", "fused"):
        network = SDXL(base).load_network(torch.float32)
        attach_lora(network, 4, SDXL.lora_targets, seed=0, backend=backend)
        shake(network)
        states[backend], folders[backend] = network.state_dict(), tmp_path / backend
        SDXL(Checkpoint("")).save_lora(network, folders[backend])
    assert list(states["peft"]) == list(states["fused"])
    files = [safe_open(folder / "pytorch_lora_weights.safetensors", "pt") for folder in folders.values()]
    assert files[0].metadata() == files[1].metadata() and files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0].get_tensor(key), files[1].get_tensor(key)) for key in files[0].keys())
    _, inputs = unet()
    expected = network(**inputs).sample
    pipeline = StableDiffusionXLPipeline.from_pretrained(base.source)
    pipeline.load_lora_weights(folders["fused"])
    torch.testing.assert_close(pipeline.unet(**inputs).sample, expected, atol=1e-5, rtol=1e-5)
    bare = SDXL(base).load_network(torch.float32)(**inputs).sample
    network.disable_adapters()
    assert torch.equal(network(**inputs).sample, bare) and not torch.allclose(bare, expected, atol=1e-3)
    network.enable_adapters()
    assert torch.equal(network(**inputs).sample, expected)


def with_config(**changes: object) -> tuple[UNet2DConditionModel, Inputs]:
    network, inputs = unet()
    network.requires_grad_(False)
    settings = {"r": 4, "lora_alpha": 4, "target_modules": ["to_q", "to_k"], "init_lora_weights": "gaussian"}
    network.add_adapter(LoraConfig(**{**settings, **changes}))
    return network, inputs


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_dora": True}, "DoraLinearVariant"),
        ({"lora_dropout": 0.5}, "dropout"),
        ({"target_modules": ["conv1"]}, "Conv2d"),
        ({"target_modules": ["to_out.0"], "lora_bias": True, "init_lora_weights": True}, "a trained bias"),
    ],
)
def test_what_peft_computes_is_counted_with_the_reason(changes: dict[str, object], reason: str) -> None:
    network, inputs = with_config(**changes)
    other = copy.deepcopy(network)
    count = sum(isinstance(m, lora.LoraLayer) for m in network.modules())
    assert fuse_lora(network) == f"LoRA: 0 of {count} layers fused, {count} by peft ({reason})"
    for each in (network, other):
        shake(each)
        each.eval()
    assert torch.equal(network(**inputs).sample, other(**inputs).sample)


def test_layers_are_chosen_one_by_one() -> None:
    network, inputs = with_config(target_modules=["to_q", "conv1"])
    other = copy.deepcopy(network)
    count = sum(isinstance(m, lora.Linear) for m in network.modules())
    line = fuse_lora(network)
    assert line.startswith(f"LoRA: {count} of ") and "by peft (Conv2d)" in line
    for each in (network, other):
        shake(each)
    torch.testing.assert_close(network(**inputs).sample, other(**inputs).sample, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_a_second_adapter_or_a_trained_base_is_pefts_again() -> None:
    network, inputs = unet()
    attach_lora(network, 4, SDXL.lora_targets, seed=0)
    shake(network)
    other, _ = unet()
    attach_lora(other, 4, SDXL.lora_targets, seed=0, backend="peft")
    shake(other)
    for each in (network, other):
        torch.manual_seed(2)
        each.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), adapter_name="second")
        each.set_adapters(["default", "second"])
    torch.testing.assert_close(network(**inputs).sample, other(**inputs).sample, atol=1e-5, rtol=1e-5)
    network.set_adapters(["default"])
    layer = next(m for m in network.modules() if isinstance(m, FusedLinear))
    layer.base_layer.weight.requires_grad_()
    network(**inputs).sample.square().mean().backward()
    assert layer.base_layer.weight.grad is not None and layer.base_layer.weight.grad.any()
