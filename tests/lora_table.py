"""The names by which other programs know the layers of a UNet, built by numbers from its published layout."""

from collections.abc import Mapping
from typing import Any

PARTS = tuple(f"attn{n}.{part}" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0"))


def unet_table(config: Mapping[str, Any]) -> dict[str, str]:
    """kohya's name of each attention projection -> its layer in the original code of Stable Diffusion."""
    each, width = config.get("layers_per_block", 2), len(config["block_out_channels"])
    depth = config.get("transformer_layers_per_block", 1)
    depths = depth if isinstance(depth, list | tuple) else [depth] * width
    places = [("mid_block_attentions_0", "middle_block.1", depths[-1])]
    for i, kind in enumerate(config["down_block_types"]):
        if kind.startswith("CrossAttn"):
            places += [
                (f"down_blocks_{i}_attentions_{j}", f"input_blocks.{1 + i * (each + 1) + j}.1", depths[i])
                for j in range(each)
            ]
    for i, kind in enumerate(config["up_block_types"]):
        if kind.startswith("CrossAttn"):
            places += [
                (f"up_blocks_{i}_attentions_{j}", f"output_blocks.{i * (each + 1) + j}.1", depths[width - 1 - i])
                for j in range(each + 1)
            ]
    return {
        f"lora_unet_{ours}_transformer_blocks_{t}_{part.replace('.', '_')}": f"{original}.transformer_blocks.{t}.{part}"
        for ours, original, count in places
        for t in range(count)
        for part in PARTS
    }
