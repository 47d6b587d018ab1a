"""A LoRA linear layer as one operation: in the base's precision, and saving its input and A x alone."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from diffpref.backbones.precision import autocast_dtype

# Half precision products with a float32 result, on CUDA from torch 2.8: neither a rounding nor a second kernel.
WIDE = hasattr(torch.ops.aten.mm, "dtype") and torch.version.hip is None


def lora_linear(
    x: Float[Tensor, "*n i"],
    weight: Float[Tensor, "o i"],
    bias: Float[Tensor, " o"] | None,
    a: Float[Tensor, "r i"],
    b: Float[Tensor, "o r"],
    *,
    scale: float,
    copies: tuple[Float[Tensor, "r i"], Float[Tensor, "o r"]] | None = None,
) -> Float[Tensor, "*n o"]:
    """x W^T + bias + scale (x A^T) B^T, in the precision of W or of autocast; W and bias get no gradient.

    Args:
        a, b: what is trained; their gradients have their own precision.
        copies: a and b in the precision of the computation, where they exist already and it is another.

    Source: Hu et al. 2022, eq. 3."""
    dtype = autocast_dtype(weight)
    if a.dtype == dtype:
        return _LoraLinear.apply(x.to(dtype), weight, bias, a, b, None, None, scale)
    if copies is None or copies[0].dtype != dtype:
        copies = (a.detach().to(dtype), b.detach().to(dtype))
    return _LoraLinear.apply(x.to(dtype), weight, bias, a, b, *copies, scale)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        a_copy: Tensor | None,
        b_copy: Tensor | None,
        scale: float,
    ) -> Tensor:
        # The base layer's own call, so that with B = 0 the output is the reference's to the last bit.
        y = linear(x, weight, bias)
        rows = x.reshape(-1, x.shape[-1])
        h = rows @ (a if a_copy is None else a_copy).t()
        y.view(-1, y.shape[-1]).addmm_(h, (b if b_copy is None else b_copy).t(), alpha=scale)
        # a and b cost nothing, and autograd then notices if they change before the backward.
        ctx.save_for_backward(rows, h, weight, a, b, a_copy, b_copy)
        ctx.shape, ctx.scale = x.shape, scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, h, weight, a, b, a_copy, b_copy = ctx.saved_tensors
        down, up = (a, b) if a_copy is None else (a_copy, b_copy)
        g = gradient.reshape(-1, gradient.shape[-1])
        of_x = of_a = of_b = None
        of_h = g @ up
        if ctx.scale != 1:
            of_h = of_h * ctx.scale
        if ctx.needs_input_grad[0]:
            of_x = (g @ weight.to(g.dtype)).addmm_(of_h, down).view(ctx.shape)
        if ctx.needs_input_grad[3]:
            of_a = _product(of_h.t(), rows, a.dtype)
        if ctx.needs_input_grad[4]:
            of_b = _product(g.t(), h, b.dtype)
            if ctx.scale != 1:
                of_b = of_b * ctx.scale
        return of_x, None, None, of_a, of_b, None, None, None


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left @ right as dtype, summed and returned in it where the device can."""
    wide = WIDE and left.dtype in (torch.float16, torch.bfloat16) and dtype == torch.float32
    if wide and left.device.type in ("cuda", "meta"):
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)
