"""LoRA files of UNets by kohya's names, the one form that diffusers, ComfyUI and A1111 all read.

peft's names, which diffusers writes, are in none of the tables of ComfyUI and A1111: they read no layer and say little.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

PREFIX = "lora_unet_"
ORIGINAL = {"add_embedding.linear_1": "label_emb_0_0", "add_embedding.linear_2": "label_emb_0_2"}
"""Layers by the names that they have in the original SDXL code: diffusers takes these apart no other way."""
DOWN, UP = (".lora_A.weight", ".lora_down.weight"), (".lora_B.weight", ".lora_up.weight")
"""peft's and kohya's endings of the two matrices."""
ALPHA = ".alpha"


def kohya_name(layer: str) -> str:
    """kohya's name of a layer of diffusers' UNet.

    >>> kohya_name("mid_block.attentions.0.proj_in")
    'lora_unet_mid_block_attentions_0_proj_in'
    """
    return PREFIX + ORIGINAL.get(layer, layer).replace(".", "_")


def save_kohya(state: Mapping[str, Tensor], scales: Mapping[str, float], base: str, file: Path) -> None:
    """Write the matrices with each layer's alpha, so that alpha / rank is the scale that they were trained at.

    Args:
        state: the matrices by peft's names.
        scales: alpha / rank of each layer.
        base: kohya's name of the base model's version, by which A1111 sorts: a file that has none passes for SD 1.
    """
    tensors: dict[str, Tensor] = {}
    ranks = {name.removesuffix(DOWN[0]): len(tensor) for name, tensor in state.items() if name.endswith(DOWN[0])}
    for layer, rank in ranks.items():
        name = kohya_name(layer)
        for theirs, ours in (DOWN, UP):
            tensors[name + ours] = state[layer + theirs].contiguous()
        tensors[name + ALPHA] = torch.tensor(scales[layer] * rank)
    notes = {
        "format": "pt",
        "ss_base_model_version": base,
        "ss_v2": str(base.startswith("sd_v2")),
        "ss_network_module": "networks.lora",
        "ss_network_dim": _one_or_all(ranks),
        "ss_network_alpha": _one_or_all({layer: scales[layer] * rank for layer, rank in ranks.items()}),
    }
    save_file(tensors, file, metadata=notes)


def lora_scales(network: torch.nn.Module, adapter: str) -> dict[str, float]:
    """alpha / rank of each layer of the network that has the LoRA of this name."""
    from peft.tuners.lora.layer import LoraLayer

    layers: dict[str, Any] = {name: part for name, part in network.named_modules() if isinstance(part, LoraLayer)}
    return {name: layer.scaling[adapter] for name, layer in layers.items() if adapter in layer.scaling}


def _one_or_all(values: Mapping[str, float]) -> str:
    """The value that all layers share, else kohya's word for several."""
    found = set(values.values())
    return str(found.pop()) if len(found) == 1 else "Dynamic"
