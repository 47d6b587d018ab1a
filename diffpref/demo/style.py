"""The style features of a picture: its palette, its shading and how flat it is; nothing in them is learned.

They say whose hand drew a picture and little of what it shows: none of them knows where in the picture anything is.

Axes: n pictures, b bins, p points, s style features.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_BINS = 7
_SURROUNDINGS = (3, 7)
"""Widths of the squares that a point is compared with, in pixels."""
_WINDOWS = (1, 2, 4)
"""Widths of the means between which flatness looks for a change, in pixels."""
_STEPS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.3)
STYLE = _BINS**3 + len(_SURROUNDINGS) * _BINS**2 + len(_WINDOWS) * len(_STEPS)
"""How many style features a picture has."""


def _soft_bins(x: Float[Tensor, "n ..."]) -> Float[Tensor, "n b p"]:
    """Each point's membership in equally spaced bins from 0 to 1: it is shared by the two nearest, and sums to 1."""
    centres = torch.linspace(0, 1, _BINS, device=x.device).view(1, _BINS, 1)
    return (1 - (x.flatten(1)[:, None] - centres).abs() * (_BINS - 1)).relu()


def _palette(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n b3"]:
    """The root of each colour's share of the picture, on a grid in red, green and blue; the squares sum to 1."""
    red, green, blue = (_soft_bins(x[:, channel]) for channel in range(3))
    share = (red[:, :, None] * green[:, None]).flatten(1, 2) @ blue.mT / red.shape[2]
    return share.flatten(1).sqrt()


def _shading(x: Float[Tensor, "n 3 h w"], width: int) -> Float[Tensor, "n b2"]:
    """The root of the joint share of: how much lighter a point is than its surroundings, and how light those are."""
    light = x.mean(1, keepdim=True)
    around = F.avg_pool2d(light, width, 1, width // 2, count_include_pad=False)
    lighter = (torch.tanh(8 * (light - around)) + 1) / 2
    share = _soft_bins(lighter) @ _soft_bins(around).mT / light[0].numel()
    return share.flatten(1).sqrt()


def _flatness(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n f"]:
    """The share of points whose colour changes by less than a step over two pixels, by width and step."""
    shares: list[Tensor] = []
    for width in _WINDOWS:
        mean = F.avg_pool2d(x, width, 1)
        change = (mean[..., 2:] - mean[..., :-2]).abs().amax(1)
        shares += [(change < step).float().mean((1, 2)) for step in _STEPS]
    return torch.stack(shares, 1)


def style(x: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n s"]:
    """The style features of pictures in [0, 1], each in [0, 1]."""
    return torch.cat([_palette(x), *(_shading(x, width) for width in _SURROUNDINGS), _flatness(x)], 1)
