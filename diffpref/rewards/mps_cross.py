"""MPS's four layers in which an image's tokens read a prompt's (Zhang et al. 2024, 2405.14705).

Each layer is two residual blocks with queries of many heads and one head of keys and values: the first reads the prompt
under a mask, the second the image itself, with rotary positions (2104.09864); beside each runs a gated feed-forward
(2002.05202). Names are those of the published weights (Kwai-Kolors/MPS:trainer/models/cross_modeling.py), without
their ".fn". Axes: n pairs, p image tokens, l prompt tokens, w width, e of a head.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

HEAD = 64
"""Width of a head of attention, and of the one head of keys and values."""
WIDER = 4
"""The feed-forward's width as a multiple of the model's."""


class Gate(nn.Module):
    """silu of the second half times the first."""

    def forward(self, x: Float[Tensor, "n p w2"]) -> Float[Tensor, "n p w"]:
        value, gate = x.chunk(2, dim=-1)
        return value * F.silu(gate)


class ReadPrompt(nn.Module):
    """What the image's tokens read in the prompt's tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * HEAD, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 2 * WIDER * width, bias=False), Gate(), nn.Linear(WIDER * width, width, bias=False)
        )

    def forward(
        self, x: Float[Tensor, "n p w"], prompt: Float[Tensor, "n l w"], read: Bool[Tensor, "n l"]
    ) -> Float[Tensor, "n p w"]:
        x = self.norm(x)
        keys, values = self.to_kv(prompt).chunk(2, dim=-1)
        return self.to_out(_attend(_heads(self.to_q(x)), keys, values, read)) + self.ff(x)


class ReadImage(nn.Module):
    """What the image's tokens read in each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.parts = (width, HEAD, HEAD, 2 * WIDER * width)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_out = nn.Sequential(Gate(), nn.Linear(WIDER * width, width, bias=False))

    def forward(self, x: Float[Tensor, "n p w"], angles: Float[Tensor, "p e"]) -> Float[Tensor, "n p w"]:
        queries, keys, values, wide = self.fused_attn_ff_proj(self.norm(x)).split(self.parts, dim=-1)
        read = _attend(rotate(_heads(queries), angles), rotate(keys, angles), values, None)
        return self.attn_out(read) + self.ff_out(wide)


class CrossModel(nn.Module):
    """The layers in their order."""

    def __init__(self, width: int, depth: int = 4) -> None:
        super().__init__()
        assert width % HEAD == 0, "a CLIP whose joint space is whole heads wide"
        self.layers = nn.ModuleList(nn.ModuleList([ReadPrompt(width), ReadImage(width)]) for _ in range(depth))

    def forward(
        self,
        image: Float[Tensor, "n p w"],
        prompt: Float[Tensor, "n l w"],
        read: Bool[Tensor, "n l"],
        angles: Float[Tensor, "p e"],
    ) -> Float[Tensor, "n p w"]:
        """The image's tokens after reading.

        Args:
            read: which of the prompt's tokens may be read, at least one of each prompt.
            angles: of `rotary_angles`, in radians."""
        for layer in self.layers:
            read_prompt, read_image = layer  # type: ignore[misc]
            image = image + read_prompt(image, prompt, read)
            image = image + read_image(image, angles)
        return image


def rotary_angles(frequencies: Float[Tensor, " half"], positions: int) -> Float[Tensor, "p e"]:
    """Position times frequency in radians, each frequency once for either half of a head, in float32.

    The product is rounded in the frequencies' own dtype: the published model is of halves, in which position 255 turns
    by steps of 0.125, and was used so."""
    turns = torch.arange(positions, dtype=frequencies.dtype)[:, None] * frequencies.cpu()
    return torch.cat([turns, turns], dim=-1).float()


def rotate(x: Float[Tensor, "*n p e"], angles: Float[Tensor, "p e"]) -> Float[Tensor, "*n p e"]:
    """x with its two halves, as real and imaginary parts, turned by the angles, in x's dtype."""
    real, imaginary = x.chunk(2, dim=-1)
    turned = torch.cat([-imaginary, real], dim=-1)
    return (x * angles.cos() + turned * angles.sin()).to(x.dtype)


def _heads(x: Float[Tensor, "n p w"]) -> Float[Tensor, "n h p e"]:
    return x.unflatten(-1, (-1, HEAD)).transpose(1, 2)


def _attend(
    queries: Float[Tensor, "n h p e"],
    keys: Float[Tensor, "n l e"],
    values: Float[Tensor, "n l e"],
    read: Bool[Tensor, "n l"] | None,
) -> Float[Tensor, "n p w"]:
    """Every head's attention to the same keys, the heads side by side; `read` masks keys."""
    shape = (-1, queries.shape[1], -1, -1)
    mask = None if read is None else read[:, None, None, :]
    found = F.scaled_dot_product_attention(
        queries, keys[:, None].expand(shape), values[:, None].expand(shape), attn_mask=mask
    )
    return found.transpose(1, 2).flatten(2)
