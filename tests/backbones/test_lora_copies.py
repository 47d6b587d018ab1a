"""The copies of the adapter in half precision, and what the fused layers cost: compiled, launched, saved."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from diffpref.backbones.adapters.lora import attach_lora, load_lora_state, lora_state, trainable
from diffpref.backbones.adapters.lora_layers import FusedLinear
from diffpref.backbones.sdxl import SDXL
from diffpref.counting import architectures
from diffpref.counting.counters import GIB, Usage
from diffpref.counting.meta import as_on_a_gpu
from diffpref.counting.networks import build_network, meta_probe, shape_of
from diffpref.errors import predict
from tests.backbones.test_lora_layers import cast, run, shake, unet

Inputs = dict[str, object]


def half() -> tuple[UNet2DConditionModel, Callable[[], torch.Tensor]]:
    """A network in bfloat16 with a fused adapter in float32, and its output."""
    network, inputs = unet()
    network.to(torch.bfloat16)
    attach_lora(network, 4, SDXL.lora_targets, seed=0)
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
    with pytest.raises(Exception):  # noqa: B017
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
        attach_lora(network, 4, SDXL.lora_targets, seed=0)
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


@pytest.mark.slow
def test_a_block_compiles_without_a_break() -> None:
    """In a process of its own: the tests' checks of annotations are no code that compiles."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.programs.compiled_block"],
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
    network = build_network(architectures.SDXL, torch.bfloat16)
    attach_lora(network, 64, SDXL.lora_targets, seed=0, backend=backend)
    model, probe = SDXL.meta_backbone(network), meta_probe(shape_of(architectures.SDXL, 1024), 1, 2)
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
