"""The layers of diffusers' AutoencoderKL by the names of the original code of Stable Diffusion."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

PREFIX = "first_stage_model."
BLOCK = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_autoencoder(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The autoencoder's tensors as a single-file checkpoint has them.

    Raises:
        ValueError: an autoencoder of another kind.
    """
    if "up_block_types" not in config or set(config["up_block_types"]) != {"UpDecoderBlock2D"}:
        raise ValueError("the original code knows no autoencoder but AutoencoderKL")
    last = len(config["up_block_types"]) - 1
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = MIDDLE.fullmatch(name)
        matrix = match is not None and match[2] == "attentions" and tensor.ndim == 2
        # Its attention projects by convolutions of one pixel.
        found[PREFIX + _name(name, last)] = tensor[:, :, None, None] if matrix else tensor
    return found


def _name(name: str, last: int) -> str:
    if match := BLOCK.fullmatch(name):
        side, block, kind, place, rest = match[1], int(match[2]), match[3], match[4], match[5]
        # The decoder's blocks are numbered from the picture's side.
        start = f"encoder.down.{block}" if side == "encoder" else f"decoder.up.{last - block}"
        if kind == "resnets":
            return f"{start}.block.{place}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
        return f"{start}.{kind.removesuffix('rs')}.{rest}"
    if match := MIDDLE.fullmatch(name):
        side, kind, place, rest = match[1], match[2], int(match[3]), match[4]
        if kind == "resnets":
            return f"{side}.mid.block_{place + 1}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
        part, _, end = rest.rpartition(".")
        return f"{side}.mid.attn_{place + 1}.{ATTENTION[part]}.{end}"
    return name.replace("conv_norm_out", "norm_out")
