"""The training step of the published scripts, re-enacted with stock parts: what ours is compared with.

Source of the order: diffusers' train_diffusion_dpo_sdxl.py. The policy runs first and its graph is alive while the
reference runs; the pair is one batch; the adapter is peft's own, in float32; pictures and prompts may be encoded anew
at every step.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from benchmarks.encoders import Encoders
from diffpref.backbones.adapters import LoRA, trainable
from diffpref.backbones.adapters.reference import AdapterOff
from diffpref.counting.meta import Region
from diffpref.counting.networks import build_network, family_of, shape_of
from diffpref.counting.steps import BETA, Count, Ready, Setup, counted, materialize
from diffpref.errors import predict
from diffpref.types import Backbone, Probe

ADAPTER = "default"


def attach_stock_lora(network: torch.nn.Module, rank: int, targets: Sequence[str]) -> list[torch.nn.Parameter]:
    """Trainable float32 LoRA by peft, as the scripts attach it; returns its parameters."""
    from peft import LoraConfig

    network.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(targets))
    network.add_adapter(config, adapter_name=ADAPTER)  # type: ignore[operator]
    trained = trainable(network)
    for parameter in trained:
        parameter.data = parameter.data.float()
    return trained


def _each_error(prediction: Float[Tensor, "b k *chw"], target: Float[Tensor, "b k *chw"]) -> Float[Tensor, "b k"]:
    return F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(2).mean(2)


def peer_step(network: torch.nn.Module, model: Backbone, probe: Probe, beta: float) -> Float[Tensor, ""]:
    """The loss of one step, after its backward pass; the adapter's gradients are added to.

    Diffusion-DPO on pairs (Wallace et al. 2023, eq. 14), candidate 0 being the better one."""
    errors = _each_error(predict(model, probe), probe.target)
    network.disable_adapters()  # type: ignore[operator]
    with torch.no_grad():
        reference = _each_error(predict(model, probe), probe.target)
    network.enable_adapters()  # type: ignore[operator]
    policy_gap, reference_gap = errors[:, 0] - errors[:, 1], reference[:, 0] - reference[:, 1]
    loss = -F.logsigmoid(-0.5 * beta * (policy_gap - reference_gap)).mean()
    loss.backward()
    return loss.detach()


def make_stock(setup: Setup, device: str = "meta") -> Ready:
    """The network as the scripts train it: peft's LoRA, diffusers' attention, and autocast over half precision too."""
    family = family_of(setup.architecture)
    network = build_network(setup.architecture, setup.dtype)
    if device != "meta":
        materialize(network, torch.device(device))
    assert isinstance(setup.adapter, LoRA), "the scripts train LoRA"
    targets = setup.adapter.lora_target_modules or family.lora_targets
    trained = attach_stock_lora(network, setup.adapter.rank, targets)
    if setup.checkpointing:
        network.enable_gradient_checkpointing()  # type: ignore[operator]
    policy = family.meta_backbone(network)
    shape = shape_of(setup.architecture, setup.resolution, setup.text_tokens)
    return Ready(setup, network, policy, AdapterOff(policy, network), trained, shape, setup.precision != "no")


def count_peer(ready: Ready, *, pairs: int = 1, encoders: Encoders | None = None) -> Count:
    """A step in the order of the published scripts.

    Args:
        encoders: what they hold and run beside it at every step, where nothing is cached.
    """

    def step(region: Region) -> None:
        probe = ready.probe(pairs, 2)
        if encoders is not None:
            encoders.run(2 * pairs, pairs, ready.setup.resolution)
        with region():
            peer_step(ready.network, ready.policy, probe, BETA)

    return counted(ready, step, () if encoders is None else [*encoders.parameters()])
