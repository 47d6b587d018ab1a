"""Noised pictures and targets as a Triton kernel; `diffpref.kernels.noising` says what it computes."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from diffpref.kernels.triton_error import on_device_of

BLOCK = 1024
"""Elements of a program: 8 for each of 128 threads."""


# no_type_check: the tests' import hook would wrap the function, and Triton needs it as it is written here.
@triton.jit
@no_type_check
def _noising(X0, EPS, ALPHA, SIGMA, A, B, X_T, TARGET, elements, k, SHARED: tl.constexpr, BLOCK: tl.constexpr):
    group = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < elements
    alpha, sigma = tl.load(ALPHA + group).to(tl.float32), tl.load(SIGMA + group).to(tl.float32)
    a, b = tl.load(A + group).to(tl.float32), tl.load(B + group).to(tl.float32)
    first = group * k
    # Where the noise is not shared, this is the first candidate's, and each candidate loads its own.
    eps = tl.load(EPS + (group if SHARED else first) * elements + column, mask=inside).to(tl.float32)
    for candidate in range(k):
        at = (first + candidate) * elements + column
        if not SHARED:
            eps = tl.load(EPS + at, mask=inside).to(tl.float32)
        x0 = tl.load(X0 + at, mask=inside).to(tl.float32)
        tl.store(X_T + at, alpha * x0 + sigma * eps, mask=inside)
        tl.store(TARGET + at, a * x0 + b * eps, mask=inside)


def forward(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and target of groups of at least one element; one launch."""
    groups, k = x0.shape[:2]
    elements = x0.numel() // (groups * k)
    dtype = torch.promote_types(x0.dtype, eps.dtype)
    x_t, target = (x0.new_empty(x0.shape, dtype=dtype) for _ in range(2))
    inputs = [each.contiguous() for each in (x0, eps, alpha, sigma, a, b)]
    sizes = {"elements": elements, "k": k, "SHARED": eps.shape != x0.shape, "BLOCK": BLOCK}
    with on_device_of(x0):
        _noising[(groups, triton.cdiv(elements, BLOCK))](*inputs, X_T=x_t, TARGET=target, **sizes)
    return x_t, target
