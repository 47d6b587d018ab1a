"""What both operators decide alike: the precision they compute in, and whether Triton runs them."""

import importlib.util
from functools import reduce

import torch
from torch import Tensor


def wide(*tensors: Tensor | None) -> torch.dtype:
    """The common dtype of the tensors, in float32 or better."""
    return reduce(torch.promote_types, (t.dtype for t in tensors if t is not None), torch.float32)


def by_triton(dtype: torch.dtype, elements: int) -> bool:
    """Whether Triton computes in this dtype here: it adds up in float32, and launches no empty grid."""
    return dtype == torch.float32 and elements > 0 and importlib.util.find_spec("triton") is not None


def check_constant(operator: str, **tensors: Tensor | None) -> None:
    """Raise ValueError for a tensor that wants a gradient which the operator does not give."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{operator} has no gradient with respect to {name}: detach() it, or use no_grad().")
