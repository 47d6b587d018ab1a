"""The precision that a network and its layers compute in: their weights', or that of autocast."""

import torch
from torch import Tensor


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """What autocast makes of the tensor where a linear layer reads it: its own dtype without autocast."""
    kind = tensor.device.type
    try:
        enabled = torch.is_autocast_enabled(kind)
    except RuntimeError:
        # A device that autocast does not know, such as meta.
        return tensor.dtype
    # It leaves float64 alone.
    return torch.get_autocast_dtype(kind) if enabled and tensor.dtype != torch.float64 else tensor.dtype


def as_weights(network: torch.nn.Module, tensor: Tensor) -> Tensor:
    """The tensor in the precision of the network's weights; an adapter's float32 does not count."""
    return tensor.to(next(network.parameters()).dtype)
