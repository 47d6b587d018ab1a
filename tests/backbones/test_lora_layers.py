"""LoRA layers computed as one operation inside real networks: peft's numbers, names, switches and exceptions."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.tuners import lora
from safetensors import safe_open

from diffpref.backbones import Checkpoint, sd3, sdxl
from diffpref.backbones.lora import attach_lora, load_lora_state, lora_state, trainable
from diffpref.backbones.lora_layers import FusedLinear, fuse_lora
from diffpref.counting.architectures import SDXL
from diffpref.counting.counters import GIB, Usage
from diffpref.counting.meta import as_on_a_gpu
from diffpref.counting.networks import build_network, meta_backbone, meta_probe, shape_of
from diffpref.errors import predict
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


NETWORKS = {"sdxl": (unet, sdxl.LORA_TARGETS), "sd3": (transformer, sd3.LORA_TARGETS)}


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
        network = sdxl.load_network(base, torch.float32)
        attach_lora(network, 4, sdxl.LORA_TARGETS, seed=0, backend=backend)
        shake(network)
        states[backend], folders[backend] = network.state_dict(), tmp_path / backend
        sdxl.save_lora(network, folders[backend])
    assert list(states["peft"]) == list(states["fused"])
    files = [safe_open(folder / "pytorch_lora_weights.safetensors", "pt") for folder in folders.values()]
    assert files[0].metadata() == files[1].metadata() and files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0].get_tensor(key), files[1].get_tensor(key)) for key in files[0].keys())
    _, inputs = unet()
    expected = network(**inputs).sample
    pipeline = StableDiffusionXLPipeline.from_pretrained(base.source)
    pipeline.load_lora_weights(folders["fused"])
    torch.testing.assert_close(pipeline.unet(**inputs).sample, expected, atol=1e-5, rtol=1e-5)
    bare = sdxl.load_network(base, torch.float32)(**inputs).sample
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
    attach_lora(network, 4, sdxl.LORA_TARGETS, seed=0)
    shake(network)
    other, _ = unet()
    attach_lora(other, 4, sdxl.LORA_TARGETS, seed=0, backend="peft")
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


def half() -> tuple[UNet2DConditionModel, Callable[[], torch.Tensor]]:
    """A network in bfloat16 with a fused adapter in float32, and its output."""
    network, inputs = unet()
    network.to(torch.bfloat16)
    attach_lora(network, 4, sdxl.LORA_TARGETS, seed=0)
    shake(network)
    given = cast(inputs, torch.bfloat16)
    return network, lambda: network(**given).sample


def test_every_forward_computes_with_the_adapter_as_it_is() -> None:
    """Also after a change that autograd's counters do not see, as averaged weights are put in place."""
    network, output = half()
    before = output()
    for parameter in trainable(network):
        parameter.data.mul_(2)
    after = output()
    assert not torch.equal(after, before)
    for parameter in trainable(network):
        parameter.data.div_(2)
    layer = next(m for m in network.modules() if isinstance(m, FusedLinear))
    x = torch.ones(1, layer.in_features, dtype=torch.bfloat16)
    alone = layer(x)
    expected = layer.base_layer(x) + x @ layer.lora_A["default"].weight.bfloat16().T @ (
        layer.lora_B["default"].weight.bfloat16().T
    )
    torch.testing.assert_close(alone, expected, atol=0.05, rtol=0.05)
    assert torch.equal(output(), before)


def test_two_forwards_may_wait_for_their_backwards() -> None:
    network, output = half()
    (output().float().mean() + output().float().square().mean()).backward()
    together = [p.grad.clone() for p in trainable(network)]
    network.zero_grad()
    output().float().mean().backward()
    output().float().square().mean().backward()
    for parameter, expected in zip(trainable(network), together, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_after_an_error_in_a_forward_layers_cast_their_own() -> None:
    network, output = half()
    layer = next(m for m in network.modules() if isinstance(m, FusedLinear))
    output()
    with pytest.raises(Exception):  # noqa: B017, PT011
        network(torch.zeros(1))
    assert not layer.copies.fresh


def test_samples_in_inference_mode_before_training() -> None:
    network, output = half()
    with torch.inference_mode():
        output()
    output().float().mean().backward()
    assert all(p.grad is not None for p in trainable(network))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_checkpointing_gives_the_same(dtype: torch.dtype) -> None:
    results = []
    for checkpointing in (False, True):
        network, inputs = unet()
        network.to(dtype)
        attach_lora(network, 4, sdxl.LORA_TARGETS, seed=0)
        shake(network)
        network.train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        results.append(run(network, inputs, dtype))
    for exact, value in zip(*results, strict=True):
        torch.testing.assert_close(value, exact, atol=0, rtol=0)


def test_a_copied_network_has_copies_of_its_own() -> None:
    network, output = half()
    output()
    other = copy.deepcopy(network)
    before = output()
    for parameter in trainable(other):
        parameter.data.mul_(2)
    given = cast(unet()[1], torch.bfloat16)
    assert not torch.equal(other(**given).sample, before) and torch.equal(output(), before)
    load_lora_state(other, lora_state(network))
    assert torch.equal(other(**given).sample, before)


COMPILED = """
import json, torch
from diffusers.models.attention import BasicTransformerBlock
from diffpref.backbones.attention.processors import install_attention
from diffpref.backbones.lora import attach_lora, trainable
torch.manual_seed(0)
block = torch.nn.Module()
block.add_module("inner", BasicTransformerBlock(32, 2, 16, cross_attention_dim=24))
from diffusers import UNet2DConditionModel
from tests.small_sdxl import small_unet
network = small_unet()
attach_lora(network, 4, ("to_k", "to_q", "to_v", "to_out.0"), seed=0)
install_attention(network, "auto", torch.float32)
for parameter in trainable(network):
    parameter.data += 0.3 * torch.randn(parameter.shape)
block = next(m for m in network.modules() if isinstance(m, BasicTransformerBlock))
x, text = torch.randn(2, 9, block.norm1.normalized_shape[0]), torch.randn(2, 5, 32)

def results(call):
    network.zero_grad()
    given = x.clone().requires_grad_()
    y = call(given, encoder_hidden_states=text)
    y.square().mean().backward()
    found = [y.detach(), given.grad, *(p.grad.clone() for p in trainable(block))]
    return found

compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
pairs = list(zip(results(block), results(compiled), strict=True))
network.disable_adapters()
with torch.no_grad():
    pairs.append((block(x, encoder_hidden_states=text), compiled(x, encoder_hidden_states=text)))
network.enable_adapters()
pairs += list(zip(results(block), results(compiled), strict=True))
print(json.dumps([len(pairs), max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)]))
"""


@pytest.mark.slow
def test_a_block_compiles_without_a_break() -> None:
    """In a process of its own: the tests' checks of annotations are no code that compiles."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    count, difference = json.loads(done.stdout.splitlines()[-1])
    assert count == 2 * (2 + 16) + 1 and difference < 1e-5


def counts(backend: str) -> tuple[int, float]:
    """Launches of one pair's step, and GiB that its backward needs, of SDXL at 1024 x 1024 with rank 64."""
    network = build_network(SDXL.network, torch.bfloat16)
    attach_lora(network, 64, sdxl.LORA_TARGETS, seed=0, backend=backend)
    model, probe = meta_backbone(SDXL, network), meta_probe(shape_of(SDXL, 1024), 1, 2)
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    with as_on_a_gpu():
        with torch.no_grad():
            # What is made once and kept, such as the copies of the adapter, is no activation.
            predict(model, probe)
        for layer in network.modules():
            copied = getattr(layer, "copied", None)
            weights |= {tensor.untyped_storage()._cdata for tensor in copied or ()}
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage
            return tensor

        with Usage() as usage, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            prediction = predict(model, probe)
            saved = sum(storage.nbytes() for storage in kept.values()) / GIB
            kept.clear()
            prediction.sum().backward()
            network.disable_adapters()
            with torch.no_grad():
                predict(model, probe)
    return usage.launches, saved


@pytest.mark.slow
def test_counted_on_the_real_sdxl_it_launches_and_saves_far_less_than_peft() -> None:
    launches, saved = counts("fused")
    peft_launches, peft_saved = counts("peft")
    assert launches <= 9000 < 13000 <= peft_launches
    assert saved <= 10.8 and peft_saved >= 14.7
