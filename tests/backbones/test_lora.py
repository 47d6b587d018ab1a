"""LoRA: nothing changes when it is attached, the reference is the base exactly, files have effective scale 1."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from diffpref.backbones import Checkpoint
from diffpref.backbones.adapters.lora import attach_lora, load_lora_state, lora_state, trainable
from diffpref.backbones.adapters.reference import AdapterOff, frozen_copy
from diffpref.backbones.sdxl import SDXL, SDXLNetwork
from diffpref.types import Cond
from tests.small_sdxl import SIZE, small_unet


@pytest.fixture
def network(base: Checkpoint) -> UNet2DConditionModel:
    return SDXL(base).load_network(torch.float32)


def inputs() -> tuple[torch.Tensor, torch.Tensor, Cond]:
    generator = torch.Generator().manual_seed(0)
    prompts = {
        "prompt_embeds": torch.randn(2, 8, 32, generator=generator),
        "pooled": torch.randn(2, 16, generator=generator),
    }
    return (
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.tensor([10, 900]),
        SDXL(Checkpoint("")).group_cond(prompts, SIZE),
    )


def shake(network: torch.nn.Module) -> None:
    """Give the adapter some effect."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trainable(network):
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


def test_attaching_changes_nothing_and_freezes_the_rest(base: Checkpoint, network: UNet2DConditionModel) -> None:
    backbone = SDXLNetwork(network, SDXL(base).path)
    before = backbone(*inputs())
    attach_lora(network, 4, SDXL.lora_targets, seed=0)
    assert torch.equal(backbone(*inputs()), before)
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert names and all("lora_" in name for name in names)
    # Two matrices for each of the eight projections of each transformer block.
    blocks = sum(name.endswith("transformer_blocks.0") for name, _ in network.named_modules())
    assert len(names) == 16 * blocks


def test_the_start_depends_on_the_seed_alone(base: Checkpoint) -> None:
    states = []
    for seed in (3, 3, 4):
        torch.rand(1)
        network = SDXL(base).load_network(torch.float32)
        attach_lora(network, 4, SDXL.lora_targets, seed=seed)
        states.append(lora_state(network))
    equal = [all(torch.equal(t, other[name]) for name, t in states[0].items()) for other in states[1:]]
    assert equal == [True, False]


def test_the_reference_is_the_base_and_leaves_the_policy_trainable(
    base: Checkpoint, network: UNet2DConditionModel
) -> None:
    path = SDXL(base).path
    expected = SDXLNetwork(copy.deepcopy(network), path)(*inputs())
    attach_lora(network, 4, SDXL.lora_targets, seed=0)
    shake(network)
    policy, flags = SDXLNetwork(network, path), [p.requires_grad for p in network.parameters()]
    before = policy(*inputs())
    reference = AdapterOff(policy, network)
    assert reference.path is path
    assert torch.equal(reference(*inputs()), expected)
    assert [p.requires_grad for p in network.parameters()] == flags
    assert torch.equal(policy(*inputs()), before)
    assert (before - expected).abs().max() > 1e-3
    policy(*inputs()).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in trainable(network))


def test_the_policy_is_back_on_after_an_error(base: Checkpoint, network: UNet2DConditionModel) -> None:
    attach_lora(network, 4, SDXL.lora_targets, seed=0)
    shake(network)
    policy = SDXLNetwork(network, SDXL(base).path)
    before = policy(*inputs())
    x_t, t, cond = inputs()
    with pytest.raises(Exception):  # noqa: B017
        AdapterOff(policy, network)(x_t[:, :1], t, cond)
    assert torch.equal(policy(*inputs()), before)


def test_a_frozen_copy_does_not_follow(network: UNet2DConditionModel) -> None:
    copied = frozen_copy(network, torch.bfloat16)
    before = copied.conv_in.weight.clone()  # type: ignore[union-attr]
    with torch.no_grad():
        network.conv_in.weight += 1
    assert torch.equal(copied.conv_in.weight, before)  # type: ignore[union-attr]
    assert not any(p.requires_grad for p in copied.parameters()) and not copied.training
    assert all(p.requires_grad for p in network.parameters()) and network.dtype == torch.float32


def test_a_copy_in_half_precision_predicts_what_the_network_does_under_autocast() -> None:
    """To the last bit, also where the norms' weights are no numbers of bfloat16."""
    network, inputs = small_unet(), {"sample": torch.randn(2, 4, 8, 8), "timestep": 500}
    inputs |= {"encoder_hidden_states": torch.randn(2, 8, 32)}
    inputs |= {"added_cond_kwargs": {"text_embeds": torch.randn(2, 16), "time_ids": torch.ones(2, 6)}}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    copied = frozen_copy(network, torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, found = (each(**inputs).sample for each in (network, copied))
    assert torch.equal(found, expected)


def test_a_half_precision_network_gets_float32_adapters(base: Checkpoint) -> None:
    network = SDXL(base).load_network(torch.bfloat16)
    attach_lora(network, 2, SDXL.lora_targets, seed=0)
    assert {p.dtype for p in trainable(network)} == {torch.float32}
    assert {p.dtype for p in network.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("rank", "targets", "message"),
    [(0, ("to_k",), "rank must be 1 or above"), (4, ("to_k", "to_x"), r"no layer of the network ends in \['to_x'\]")],
)
def test_what_cannot_work_is_refused(
    network: UNet2DConditionModel, rank: int, targets: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        attach_lora(network, rank, targets, seed=0)


def test_state_goes_back_into_the_same_adapter(base: Checkpoint, network: UNet2DConditionModel) -> None:
    attach_lora(network, 4, SDXL.lora_targets, seed=0)
    shake(network)
    saved = {name: tensor.clone() for name, tensor in lora_state(network).items()}
    fresh = SDXL(base).load_network(torch.float32)
    attach_lora(fresh, 4, SDXL.lora_targets, seed=0)
    count = len(trainable(fresh))
    load_lora_state(fresh, saved)
    assert list(fresh.peft_config) == ["default"] and len(trainable(fresh)) == count
    assert all(torch.equal(tensor, saved[name]) for name, tensor in lora_state(fresh).items())
    path = SDXL(base).path
    assert torch.equal(SDXLNetwork(fresh, path)(*inputs()), SDXLNetwork(network, path)(*inputs()))


@pytest.mark.parametrize(("rank", "targets"), [(2, SDXL.lora_targets), (4, ("to_k",))], ids=["rank", "targets"])
def test_state_of_another_adapter_is_refused(
    base: Checkpoint, network: UNet2DConditionModel, rank: int, targets: tuple[str, ...]
) -> None:
    attach_lora(network, 4, SDXL.lora_targets, seed=0)
    fresh = SDXL(base).load_network(torch.float32)
    attach_lora(fresh, rank, targets, seed=0)
    with pytest.raises((ValueError, RuntimeError), match="other layers|size mismatch"):
        load_lora_state(fresh, lora_state(network))


def test_the_file_has_effective_scale_1(network: UNet2DConditionModel, tmp_path: Path) -> None:
    attach_lora(network, 4, SDXL.lora_targets, seed=0)
    scales = {value for m in network.modules() for value in getattr(m, "scaling", {}).values()}
    assert scales == {1.0}
    SDXL(Checkpoint("")).save_lora(network, tmp_path)
    saved = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert {name.partition(".")[2] for name in saved} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert {tensor.item() for name, tensor in saved.items() if name.endswith(".alpha")} == {4.0}
