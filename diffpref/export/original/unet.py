"""The layers of diffusers' UNet by the names of the original code of Stable Diffusion."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from diffpref.backbones.weight_files import STABILITY

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
"""The parts of a residual block."""
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
"""The layers outside all blocks."""
INNER = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def original_unet(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The UNet's tensors as a single-file checkpoint has them.

    Raises:
        ValueError: a layer that the original code has no place for; names it.
    """
    if not isinstance(each := config["layers_per_block"], int):
        raise ValueError(f"the original code knows one number of layers for all blocks, and this UNet has {each}")
    return {STABILITY + _name(name, each, config["up_block_types"]): tensor for name, tensor in tensors.items()}


def _name(name: str, each: int, ups: Sequence[str]) -> str:
    if match := INNER.fullmatch(name):
        side, block, kind, place, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        # The input blocks begin with conv_in, and end with a downsampler each; an upsampler is in its last layer's.
        layer = block * (each + 1) + (side == "down") + place
        start = "input_blocks" if side == "down" else "output_blocks"
        if kind == "resnets":
            return f"{start}.{layer}.0.{_resnet(rest)}"
        if kind == "attentions":
            return f"{start}.{layer}.1.{rest}"
        if kind == "downsamplers":
            return f"{start}.{layer + each}.0.op.{rest.removeprefix('conv.')}"
        return f"{start}.{layer + each}.{1 + ups[block].startswith('CrossAttn')}.{rest}"
    if match := MIDDLE.fullmatch(name):
        kind, place, rest = match[1], int(match[2]), match[3]
        return (
            f"middle_block.{2 * place}.{_resnet(rest)}" if kind == "resnets" else f"middle_block.{2 * place + 1}.{rest}"
        )
    layer, _, end = name.rpartition(".")
    if layer not in ENDS:
        raise ValueError(f"the original code has no place for {name}")
    return f"{ENDS[layer]}.{end}"


def _resnet(rest: str) -> str:
    part, _, end = rest.rpartition(".")
    if part not in RESNET:
        raise ValueError(f"the original code's residual blocks have no {part}")
    return f"{RESNET[part]}.{end}"
