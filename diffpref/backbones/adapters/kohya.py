"""LoRA files of UNets by kohya's names, the one form that diffusers, ComfyUI and A1111 all read.

peft's names, which diffusers writes, are in none of the tables of ComfyUI and A1111: they read no layer and say little.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffpref.backbones.adapters.lora_file import Layer

PREFIX = "lora_unet_"
ORIGINAL = {"add_embedding.linear_1": "label_emb_0_0", "add_embedding.linear_2": "label_emb_0_2"}
"""Layers by the names that they have in the original SDXL code: diffusers takes these apart no other way."""


def kohya_name(layer: str) -> str:
    """kohya's name of a layer of diffusers' UNet.

    >>> kohya_name("mid_block.attentions.0.proj_in")
    'lora_unet_mid_block_attentions_0_proj_in'
    """
    return PREFIX + ORIGINAL.get(layer, layer).replace(".", "_")


def save_kohya(layers: Mapping[str, Layer], base: str, file: Path) -> None:
    """Write the matrices with each layer's alpha, so that alpha / rank is the scale that they were trained at.

    Args:
        layers: the LoRA by the names of the network's layers.
        base: kohya's name of the base model's version, by which A1111 sorts: a file that has none passes for SD 1.
    """
    tensors: dict[str, Tensor] = {}
    alphas = {name: layer.scale * layer.rank for name, layer in layers.items()}
    for name, layer in layers.items():
        kohya = kohya_name(name)
        tensors[f"{kohya}.lora_down.weight"] = layer.down.detach().contiguous()
        tensors[f"{kohya}.lora_up.weight"] = layer.up.detach().contiguous()
        tensors[f"{kohya}.alpha"] = torch.tensor(alphas[name])
    notes = {
        "format": "pt",
        "ss_base_model_version": base,
        "ss_v2": str(base.startswith("sd_v2")),
        "ss_network_module": "networks.lora",
        "ss_network_dim": _one_or_all([layer.rank for layer in layers.values()]),
        "ss_network_alpha": _one_or_all(alphas.values()),
    }
    save_file(tensors, file, metadata=notes)


def _one_or_all(values: Iterable[float]) -> str:
    """The value that all layers share, else kohya's word for several."""
    found = set(values)
    return str(found.pop()) if len(found) == 1 else "Dynamic"
