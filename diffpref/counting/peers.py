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

from diffpref.backbones.lora import trainable
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
