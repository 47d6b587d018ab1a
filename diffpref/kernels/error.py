"""The weighted squared error of a prediction and how far it is from the reference's: one operator with its gradient.

error_i = w_i mean_j (F_ij - y_ij)^2 and difference_i = error(F)_i - error(R)_i, which is computed as
w_i mean_j (F - R)((F - y) + (R - y)): the subtraction of two nearly equal errors would lose half of float32's digits,
and this is exactly 0 where F equals R bit for bit.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.kernels.dispatch import by_triton, check_constant, wide

CHUNK = 2**18
"""Elements that plain torch works on at once: its temporaries, at most six of these, stay in the CPU's cache."""


def fused_error(
    prediction: Float[Tensor, " n *chw"],
    reference: Float[Tensor, " n *chw"] | None,
    target: Float[Tensor, " n *chw"],
    weight: Float[Tensor, " b"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Each row's weighted mean squared error, and its difference to that of the reference; float32 or better.

    Both have the same gradient with respect to the prediction, 2 w (F - y) / elements, and none with respect to
    anything else. Nothing is kept for it that is not alive anyway: the backward pass computes F - y again.

    Args:
        reference: the reference's prediction; without one, the difference is the error itself.
        weight: one for each n / b rows that follow one another.

    Raises:
        ValueError: shapes or devices that do not fit, or a gradient wanted for anything but the prediction.
        NotImplementedError: a gradient of the gradient, when it is taken.
    """
    for name, tensor in (("reference", reference), ("target", target)):
        if tensor is not None and tensor.shape != prediction.shape:
            raise ValueError(
                f"{name} must have the prediction's shape {tuple(prediction.shape)}, got {tuple(tensor.shape)}."
            )
    if weight.ndim != 1 or prediction.shape[0] % max(weight.shape[0], 1):
        raise ValueError(
            f"weight must hold one number for each group of equally many of the {prediction.shape[0]} rows, "
            f"got shape {tuple(weight.shape)}."
        )
    for name, tensor in (("reference", reference), ("target", target), ("weight", weight)):
        if tensor is not None and tensor.device != prediction.device:
            raise ValueError(f"{name} must be on the prediction's device {prediction.device}, got {tensor.device}.")
    check_constant("fused_error", reference=reference, target=target, weight=weight)
    return _forward(prediction, reference, target, weight)


def of_rows(weight: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """The weight of each row, from that of each group of rows."""
    return weight.to(dtype).repeat_interleave(rows // max(weight.shape[0], 1))


def plain_forward(
    prediction: Tensor, reference: Tensor | None, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Errors and differences in plain torch."""
    rows, dtype = len(prediction), wide(prediction, reference, target)
    error, difference = prediction.new_empty(2, rows, dtype=dtype).unbind()
    step = max(1, CHUNK * rows // max(prediction.numel(), 1))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        policy, goal = prediction[part].to(dtype), target[part].to(dtype)
        residual = policy - goal
        if reference is not None:
            other = reference[part].to(dtype)
            both = (other - goal).add_(residual)
            difference[part] = both.mul_(policy - other).flatten(1).mean(1)
        error[part] = residual.square_().flatten(1).mean(1)
    weights = of_rows(weight, rows, dtype)
    weighted = error * weights
    return weighted, weighted.clone() if reference is None else difference * weights


def plain_backward(
    prediction: Tensor, target: Tensor, weight: Tensor, to_error: Tensor, to_difference: Tensor
) -> Tensor:
    """The gradient of the prediction in plain torch."""
    rows, dtype = len(prediction), wide(prediction, target)
    elements = prediction.numel() // max(rows, 1)
    factor = 2 * of_rows(weight, rows, dtype) * (to_error + to_difference).to(dtype) / max(elements, 1)
    factor = factor.reshape(-1, *(1,) * (prediction.ndim - 1))
    gradient = torch.empty_like(prediction, memory_format=torch.contiguous_format)
    step = max(1, CHUNK * rows // max(prediction.numel(), 1))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        gradient[part] = factor[part] * (prediction[part].to(dtype) - target[part].to(dtype))
    return gradient


_forward = torch.library.custom_op(
    "diffpref::fused_error",
    plain_forward,
    mutates_args=(),
    schema="(Tensor prediction, Tensor? reference, Tensor target, Tensor weight) -> (Tensor, Tensor)",
)
_backward = torch.library.custom_op(
    "diffpref::fused_error_backward",
    plain_backward,
    mutates_args=(),
    schema="(Tensor prediction, Tensor target, Tensor weight, Tensor to_error, Tensor to_difference) -> Tensor",
)


@_forward.register_fake
def _(prediction: Tensor, reference: Tensor | None, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    error = prediction.new_empty(prediction.shape[0], dtype=wide(prediction, reference, target))
    return error, torch.empty_like(error)


@_backward.register_fake
def _(prediction: Tensor, target: Tensor, weight: Tensor, to_error: Tensor, to_difference: Tensor) -> Tensor:
    return torch.empty_like(prediction, memory_format=torch.contiguous_format)


@_forward.register_kernel("cuda")
def launch_forward(
    prediction: Tensor, reference: Tensor | None, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The operator by Triton, where it can; else by plain torch."""
    if not by_triton(wide(prediction, reference, target), prediction.numel()):
        return plain_forward(prediction, reference, target, weight)
    from diffpref.kernels import triton_error

    return triton_error.forward(prediction, reference, target, weight)


@_backward.register_kernel("cuda")
def launch_backward(
    prediction: Tensor, target: Tensor, weight: Tensor, to_error: Tensor, to_difference: Tensor
) -> Tensor:
    """The gradient by Triton, where it can; else by plain torch."""
    if not by_triton(wide(prediction, target), prediction.numel()):
        return plain_backward(prediction, target, weight, to_error, to_difference)
    from diffpref.kernels import triton_error

    return triton_error.backward(prediction, target, weight, to_error, to_difference)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    prediction, _, target, weight = inputs
    ctx.save_for_backward(prediction, target, weight)


def _gradients(ctx: Any, to_error: Tensor, to_difference: Tensor) -> tuple[Tensor, None, None, None]:
    gradient = _backward(*ctx.saved_tensors, to_error, to_difference)
    return gradient, None, None, None


def _refuse(ctx: Any, to_gradient: Tensor) -> None:
    raise NotImplementedError("fused_error has no second derivative: take its gradient without create_graph.")


_forward.register_autograd(_gradients, setup_context=_keep)
_backward.register_autograd(_refuse)
