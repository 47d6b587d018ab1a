"""How other programs read a LoRA: their names of a UNet's layers, built by numbers from its published layout, and
ComfyUI's rule of merging."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

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


def merge(network: Any, file: Path) -> set[str]:
    """Add alpha / rank of up @ down where ComfyUI's names lead to, and return the tensors that are left over."""
    saved, taken = load_file(file), set[str]()
    for layer, module in network.named_modules():
        for prefix, up, down in (
            (f"lora_unet_{layer.replace('.', '_')}", ".lora_up.weight", ".lora_down.weight"),
            (f"transformer.{layer}", ".lora_B.weight", ".lora_A.weight"),
        ):
            if prefix + up in saved:
                alpha = saved.get(f"{prefix}.alpha")
                scale = 1.0 if alpha is None else alpha.item() / len(saved[prefix + down])
                module.weight.data += scale * saved[prefix + up] @ saved[prefix + down]
                taken |= {prefix + up, prefix + down, f"{prefix}.alpha"}
    return saved.keys() - taken
