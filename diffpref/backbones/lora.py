"""LoRA on a network: attach, switch off for the reference, save so that every reader finds the right scale."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from diffpref.backbones.lora_layers import fuse_lora

ADAPTER = "default"
# The fields that every peft since 0.10 reads; a newer peft's other fields make an older one refuse the file.
PORTABLE = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias", "peft_type")


def attach_lora(
    network: torch.nn.Module,
    rank: int,
    targets: Sequence[str],
    *,
    seed: int,
    backend: Literal["fused", "peft"] = "fused",
) -> str:
    """Freeze the network and add trainable LoRA in float32, alpha equal to rank: at step 0 its output is unchanged.

    Returns a line that says which layers are computed by our fused operation and which by peft.

    Raises:
        ValueError: a rank below 1, or no layer with one of the target names.
    """
    if rank < 1:
        raise ValueError(f"rank must be 1 or above, got {rank}.")
    names = [name for name, _ in network.named_modules()]
    missing = [target for target in targets if not any(name.endswith(target) for name in names)]
    if missing:
        raise ValueError(
            f"lora_target_modules: no layer of the network ends in {missing}; leave it out for the default."
        )
    network.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(targets))
    # peft draws from the global generator; two runs of one seed must start from the same matrices.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network.add_adapter(config, adapter_name=ADAPTER)  # type: ignore[operator]
    for parameter in trainable(network):
        parameter.data = parameter.data.float()
    return fuse_lora(network) if backend == "fused" else "LoRA: all layers by peft"


def trainable(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that the optimizer moves, in a fixed order."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def lora_state(network: torch.nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors by peft's names, as they are (no copy)."""
    return get_peft_model_state_dict(network, adapter_name=ADAPTER)


def load_lora_state(network: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Put tensors into the adapter that is there; never a second adapter beside it, which would train nothing."""
    result = set_peft_model_state_dict(network, state, adapter_name=ADAPTER)
    if result.unexpected_keys or any("lora_" in key for key in result.missing_keys):
        raise ValueError("the saved LoRA has other layers than this run: check rank and lora_target_modules.")


def lora_metadata(network: torch.nn.Module) -> dict[str, Any]:
    """The part of the adapter's config that all versions of peft read."""
    config = network.peft_config[ADAPTER].to_dict()  # type: ignore[index]
    kept = {name: config[name] for name in PORTABLE if name in config}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in kept.items()}
