"""The layers of diffusers' SD3 transformer by the names of Stability's own code."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffpref.backbones.adapters.lora_names import place_of
from diffpref.backbones.weight_files import STABILITY

BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)")
ENDS = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
"""The layers outside all blocks."""
NORMS = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
}
"""The norms of a block."""


def original_transformer(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The transformer's tensors as a single-file checkpoint has them: queries, keys and values are one matrix.

    Raises:
        ValueError: a layer that Stability's code has no place for; names it.
    """
    found: dict[str, Tensor] = {}
    joined: dict[str, dict[int, Tensor]] = {}
    last = str(config["num_layers"] - 1)
    for name, tensor in tensors.items():
        match = BLOCK.fullmatch(name)
        if match is None:
            layer, _, end = name.rpartition(".")
            place = ENDS[name] if name in ENDS else f"{ENDS.get(layer, '')}.{end}"
            if place[0] == ".":
                raise ValueError(f"Stability's code has no place for {name}")
            found[STABILITY + place] = _swapped(tensor) if layer == "norm_out.linear" else tensor
            continue
        block, part, end = match[1], match[2], match[3]
        start = f"{STABILITY}joint_blocks.{block}."
        if part in NORMS:
            # The last block's text stream ends in a norm of two parts, which diffusers has in another order.
            two = part == "norm1_context.linear" and block == last
            found[f"{start}{NORMS[part]}.{end}"] = _swapped(tensor) if two else tensor
        else:
            place, which, _ = place_of(part)
            joined.setdefault(f"{start}{place}.{end}", {})[which] = tensor
    return found | {name: torch.cat([parts[i] for i in sorted(parts)]) for name, parts in joined.items()}


def _swapped(tensor: Tensor) -> Tensor:
    """Scale and shift as shift and scale."""
    first, second = tensor.chunk(2)
    return torch.cat([second, first])
