"""LoRA files by kohya's names, of UNets the one form that diffusers, ComfyUI and A1111 all read.

peft's names, which diffusers writes, are in none of the tables of ComfyUI and A1111: they read no layer and say little.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffpref.backbones.adapters.lora_file import Layer
from diffpref.backbones.adapters.lora_names import place_of
from diffpref.backbones.adapters.lora_stack import Layers, padded

PREFIX = "lora_unet_"
ORIGINAL = {"add_embedding.linear_1": "label_emb_0_0", "add_embedding.linear_2": "label_emb_0_2"}
"""Layers by the names that they have in the original SDXL code: diffusers takes these apart no other way."""
BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)")


def kohya_name(layer: str) -> str:
    """kohya's name of a layer of diffusers' UNet.

    >>> kohya_name("mid_block.attentions.0.proj_in")
    'lora_unet_mid_block_attentions_0_proj_in'
    """
    return PREFIX + ORIGINAL.get(layer, layer).replace(".", "_")


def fused_layers(layers: Layers) -> dict[str, Layer]:
    """A LoRA of SD3's transformer by the names of Stability's code, which has one matrix for queries, keys and values.

    The parts' matrices stand in its blocks: its rank is the sum of theirs, and the change is theirs. All layers get the
    largest rank, and scale 1.

    Raises:
        ValueError: a layer that this code has not; names it.
    """
    joined: dict[str, tuple[int, dict[int, Layer]]] = {}
    for name, layer in layers.items():
        match = BLOCK.fullmatch(name)
        if match is None:
            raise ValueError(f"kohya's names of SD3 have no {name}: export it with --to comfyui or --to diffusers.")
        place, which, count = place_of(match[2])
        joined.setdefault(f"joint_blocks.{match[1]}.{place}", (count, {}))[1][which] = layer
    rank = max(sum(layer.rank for layer in parts.values()) for _, parts in joined.values())
    found: dict[str, Layer] = {}
    for name, (count, parts) in joined.items():
        height, first = len(next(iter(parts.values())).up), 0
        up = torch.zeros(count * height, sum(layer.rank for layer in parts.values()))
        for which, layer in parts.items():
            up[which * height : (which + 1) * height, first : first + layer.rank] = layer.scale * layer.up.float()
            first += layer.rank
        found[name] = padded(torch.cat([layer.down.float() for layer in parts.values()]), up, rank)
    return found


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
