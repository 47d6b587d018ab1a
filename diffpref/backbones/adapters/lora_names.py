"""The names of a LoRA's tensors: diffusers', its older scripts', peft's and kohya's, all read as peft's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PEFT_PREFIX = "base_model.model."
"""What peft's own folders put before a name."""
TEXT = ("text_encoder", "lora_te")
"""How the layers of text encoders begin."""
KOHYA = ("lora_unet_", "lora_transformer_")
"""How kohya's and OneTrainer's names of the trained network begin."""
JOINT = re.compile(r"joint_blocks_(\d+)_(x|context)_block_(.+)")
SPLIT = {
    ("x", "attn_qkv"): ("attn.to_q", "attn.to_k", "attn.to_v"),
    ("x", "attn2_qkv"): ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    ("context", "attn_qkv"): ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    ("x", "attn_proj"): ("attn.to_out.0",),
    ("x", "attn2_proj"): ("attn2.to_out.0",),
    ("context", "attn_proj"): ("attn.to_add_out",),
    ("x", "mlp_fc1"): ("ff.net.0.proj",),
    ("x", "mlp_fc2"): ("ff.net.2",),
    ("context", "mlp_fc1"): ("ff_context.net.0.proj",),
    ("context", "mlp_fc2"): ("ff_context.net.2",),
}
"""The layers of a block of SD3's transformer by the names in Stability's code, which kohya's follow."""


def place_of(part: str) -> tuple[str, int, int]:
    """The name in Stability's code of a matrix of a block of SD3's transformer, and which of how many parts of it this
    one is.

    >>> place_of("attn.to_k")
    ('x_block.attn.qkv', 1, 3)

    Raises:
        ValueError: no such matrix.
    """
    for (stream, name), inner in SPLIT.items():
        if part in inner:
            return f"{stream}_block.{name.replace('_', '.')}", inner.index(part), len(inner)
    raise ValueError(f"Stability's code has no place for {part}")


@dataclass(frozen=True)
class Named:
    """A LoRA's tensors by peft's names, without the network's own name before them."""

    tensors: Mapping[str, Tensor]
    alphas: Mapping[str, float] | None = None
    """As diffusers' `load_lora_adapter` takes them, for kohya's files."""
    texts: int = 0
    """Tensors of text encoders, left out."""


def peft_names(tensors: Mapping[str, Tensor], network: torch.nn.Module, component: str) -> Named:
    """The tensors of a LoRA file for the network, whatever names it has.

    Where a file has two namings, the one with the network's own name counts, as in diffusers.

    Raises:
        ValueError: kohya's names of no layer of the network.
    """
    from diffusers.utils import convert_unet_state_dict_to_peft

    tensors = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in tensors.items()}
    ours = {name: tensor for name, tensor in tensors.items() if not name.startswith(TEXT)}
    texts, alphas, prefix = len(tensors) - len(ours), None, f"{component}."
    if any(name.startswith(prefix) for name in ours):
        ours = {name.removeprefix(prefix): tensor for name, tensor in ours.items() if not name.startswith(KOHYA)}
    elif any(name.startswith(KOHYA) for name in ours):
        found, alphas = (_unet if component == "unet" else _transformer)(ours, network)
        ours = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return Named(convert_unet_state_dict_to_peft(ours), alphas, texts)


def _unet(tensors: dict[str, Tensor], network: Any) -> tuple[Mapping[str, Tensor], Mapping[str, float]]:
    """kohya's names of a UNet's layers, by diffusers' own table: also those that number the blocks through."""
    from diffusers import StableDiffusionXLPipeline

    found: Any = StableDiffusionXLPipeline.lora_state_dict(dict(tensors), unet_config=network.config)
    return found


def _transformer(
    tensors: dict[str, Tensor], network: torch.nn.Module
) -> tuple[Mapping[str, Tensor], Mapping[str, float]]:
    """kohya's and OneTrainer's names of SD3's layers, which diffusers does not read."""
    flat = {name.replace(".", "_"): name for name, _ in network.named_modules()}
    found: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".")
        short = layer.removeprefix(KOHYA[0]).removeprefix(KOHYA[1])
        match = JOINT.fullmatch(short)
        inner = SPLIT.get((match[2], match[3]), ()) if match else ()
        layers = tuple(f"transformer_blocks.{match[1]}.{each}" for each in inner) if match else (flat.get(short),)
        if not layers or None in layers:
            raise ValueError(f"{name} is no layer of a {type(network).__name__}")
        # One matrix feeds queries, keys and values, and the other holds their rows in this order.
        ups = tensor.chunk(len(layers)) if part == "lora_up.weight" else (tensor,) * len(layers)
        for each, up in zip(layers, ups, strict=True):
            if part == "alpha":
                alphas[f"transformer.{each}.alpha"] = tensor.item()
            else:
                found[f"{each}.{part.replace('lora_down', 'lora_A').replace('lora_up', 'lora_B')}"] = up
    return found, alphas
