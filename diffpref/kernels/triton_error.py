"""The errors, their differences and the gradient as Triton kernels; `diffpref.kernels.error` says what they compute.

A row is cut into blocks, one program each, whose sums a second kernel adds up: always in the same order, so the same
inputs give the same bits. `share` is 1 / elements: Triton's own division of float32 is not rounded correctly.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Elements of a program: 8 for each of 128 threads."""


# no_type_check: the tests' import hook would wrap these functions, and Triton needs them as they are written here.
@triton.jit
@no_type_check
def _sums(F, R, Y, SUMS, elements, blocks, HAS_REFERENCE: tl.constexpr, BLOCK: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = block * BLOCK + tl.arange(0, BLOCK)
    inside = column < elements
    at = row * elements + column
    target = tl.load(Y + at, mask=inside, other=0).to(tl.float32)
    prediction = tl.load(F + at, mask=inside, other=0).to(tl.float32)
    residual = prediction - target
    sums = SUMS + (row * blocks + block) * 2
    tl.store(sums, tl.sum(residual * residual, axis=0))
    if HAS_REFERENCE:
        reference = tl.load(R + at, mask=inside, other=0).to(tl.float32)
        apart = (prediction - reference) * (residual + (reference - target))
        tl.store(sums + 1, tl.sum(apart, axis=0))


@triton.jit
@no_type_check
def _means(SUMS, W, ERROR, DIFFERENCE, share, blocks, group, HAS_REFERENCE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    squared = tl.zeros([BLOCK], tl.float32)
    apart = tl.zeros([BLOCK], tl.float32)
    for start in range(0, blocks, BLOCK):
        block = start + tl.arange(0, BLOCK)
        sums = SUMS + (row * blocks + block) * 2
        squared += tl.load(sums, mask=block < blocks, other=0)
        if HAS_REFERENCE:
            apart += tl.load(sums + 1, mask=block < blocks, other=0)
    weight = tl.load(W + row // group).to(tl.float32) * share
    error = tl.sum(squared, axis=0) * weight
    tl.store(ERROR + row, error)
    if HAS_REFERENCE:
        error = tl.sum(apart, axis=0) * weight
    tl.store(DIFFERENCE + row, error)


@triton.jit
@no_type_check
def _gradient(F, Y, W, TO_ERROR, TO_DIFFERENCE, GRADIENT, elements, share, group, BLOCK: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = block * BLOCK + tl.arange(0, BLOCK)
    inside = column < elements
    at = row * elements + column
    incoming = tl.load(TO_ERROR + row).to(tl.float32) + tl.load(TO_DIFFERENCE + row).to(tl.float32)
    factor = 2 * share * tl.load(W + row // group).to(tl.float32) * incoming
    residual = tl.load(F + at, mask=inside).to(tl.float32) - tl.load(Y + at, mask=inside).to(tl.float32)
    tl.store(GRADIENT + at, factor * residual, mask=inside)


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """The tensor's GPU as the current one: Triton launches there, whatever its arguments are on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def forward(prediction: Tensor, reference: Tensor | None, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Errors and differences of rows of at least one element; two launches."""
    rows = len(prediction)
    elements = prediction.numel() // rows
    blocks = triton.cdiv(elements, BLOCK)
    sums = prediction.new_empty(rows, blocks, 2, dtype=torch.float32)
    error, difference = (prediction.new_empty(rows, dtype=torch.float32) for _ in range(2))
    prediction, target, weight = prediction.contiguous(), target.contiguous(), weight.contiguous()
    has_reference = reference is not None
    other = prediction if reference is None else reference.contiguous()
    with on_device_of(prediction):
        _sums[(rows, blocks)](prediction, other, target, sums, elements, blocks, has_reference, BLOCK)
        _means[(rows,)](
            sums, weight, error, difference, 1 / elements, blocks, rows // len(weight), has_reference, BLOCK
        )
    return error, difference


def backward(prediction: Tensor, target: Tensor, weight: Tensor, to_error: Tensor, to_difference: Tensor) -> Tensor:
    """The gradient of the prediction, in its dtype; one launch."""
    rows = len(prediction)
    elements = prediction.numel() // rows
    gradient = torch.empty_like(prediction, memory_format=torch.contiguous_format)
    inputs = [each.contiguous() for each in (prediction, target, weight, to_error, to_difference)]
    sizes = {"elements": elements, "share": 1 / elements, "group": rows // len(weight), "BLOCK": BLOCK}
    with on_device_of(prediction):
        _gradient[(rows, triton.cdiv(elements, BLOCK))](*inputs, GRADIENT=gradient, **sizes)
    return gradient
