"""Noised pictures and what the network should predict there: both in one pass over pictures and noise.

x_t = alpha x0 + sigma eps and target = a x0 + b eps, the four numbers being those of each group of candidates. Noise
that the candidates of a group share is read once for all of them.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.kernels.dispatch import by_triton, check_constant, wide

SCHEMA = "(Tensor x0, Tensor eps, Tensor alpha, Tensor sigma, Tensor a, Tensor b) -> (Tensor, Tensor)"


def noise_and_target(
    x0: Float[Tensor, "b k *chw"],
    eps: Float[Tensor, "b k_or_1 *chw"],
    *,
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
    a: Float[Tensor, " b"],
    b: Float[Tensor, " b"],
) -> tuple[Float[Tensor, "b k *chw"], Float[Tensor, "b k *chw"]]:
    """x_t = alpha x0 + sigma eps and target = a x0 + b eps, computed in float32 or better, in the inputs' dtype.

    Args:
        eps: noise for each candidate, or one for all candidates of a group.

    Raises:
        ValueError: shapes or devices that do not fit, or a gradient wanted for a coefficient.
    """
    if eps.shape not in (x0.shape, (x0.shape[0], 1, *x0.shape[2:])):
        raise ValueError(
            f"eps must have the shape of x0 {tuple(x0.shape)}, or 1 in place of its {x0.shape[1]} candidates, "
            f"got {tuple(eps.shape)}."
        )
    if eps.device != x0.device:
        raise ValueError(f"eps must be on the device of x0, {x0.device}, got {eps.device}.")
    for name, values in (("alpha", alpha), ("sigma", sigma), ("a", a), ("b", b)):
        if values.shape != x0.shape[:1] or values.device != x0.device:
            raise ValueError(
                f"{name} must hold one number for each of the {x0.shape[0]} groups on {x0.device}, "
                f"got shape {tuple(values.shape)} on {values.device}."
            )
    check_constant("noise_and_target", alpha=alpha, sigma=sigma, a=a, b=b)
    return _forward(x0, eps, alpha, sigma, a, b)


def _over(coefficient: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    return coefficient.to(dtype).reshape(-1, *(1,) * (x.ndim - 1))


def plain_forward(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and target in plain torch."""
    dtype, kept = wide(x0, eps), torch.promote_types(x0.dtype, eps.dtype)

    def mix(first: Tensor, second: Tensor) -> Tensor:
        mixed = _over(first, x0, dtype) * x0.to(dtype) + _over(second, x0, dtype) * eps.to(dtype)
        return mixed.to(kept).contiguous()

    return mix(alpha, sigma), mix(a, b)


_forward = torch.library.custom_op("diffpref::noising", plain_forward, mutates_args=(), schema=SCHEMA)


@_forward.register_fake
def _(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    x_t = x0.new_empty(x0.shape, dtype=torch.promote_types(x0.dtype, eps.dtype))
    return x_t, torch.empty_like(x_t)


@_forward.register_kernel("cuda")
def launch_forward(
    x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """The operator by Triton, where it can; else by plain torch."""
    if not by_triton(wide(x0, eps), x0.numel()):
        return plain_forward(x0, eps, alpha, sigma, a, b)
    from diffpref.kernels import triton_noising

    return triton_noising.forward(x0, eps, alpha, sigma, a, b)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    x0, eps, *coefficients = inputs
    ctx.save_for_backward(*coefficients)
    ctx.dtypes, ctx.shared = (x0.dtype, eps.dtype), eps.shape != x0.shape


def _gradients(ctx: Any, to_x_t: Tensor, to_target: Tensor) -> tuple[Tensor | None, ...]:
    dtype = wide(to_x_t)
    alpha, sigma, a, b = (_over(coefficient, to_x_t, dtype) for coefficient in ctx.saved_tensors)
    to_x0, to_eps = alpha * to_x_t + a * to_target, sigma * to_x_t + b * to_target
    if ctx.shared:
        to_eps = to_eps.sum(1, keepdim=True)
    return to_x0.to(ctx.dtypes[0]), to_eps.to(ctx.dtypes[1]), None, None, None, None


_forward.register_autograd(_gradients, setup_context=_keep)
