"""Gradients beside the optimizer's: unit-weight scratches that are scaled later, and the sum over processes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed
from torch import Tensor

Scratch = list[Tensor | None]
BUCKET = 2**23
"""Elements that are reduced over the processes at once."""


@contextmanager
def collected(parameters: Sequence[torch.nn.Parameter]) -> Iterator[Scratch]:
    """The gradients of the backwards inside, apart from those that the parameters have; complete when the block ends.

    Trained parameters are float32 or better, and so are these: in bfloat16 the sum would be wrong by 2 %."""
    assert all(p.dtype not in (torch.float16, torch.bfloat16) for p in parameters), "a scratch is float32 or better"
    kept = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    scratch: Scratch = []
    try:
        yield scratch
        scratch.extend(p.grad for p in parameters)
    finally:
        for p, gradient in zip(parameters, kept, strict=True):
            p.grad = gradient


def add_scaled(parameters: Sequence[torch.nn.Parameter], scratch: Scratch, factor: Tensor) -> None:
    """Add factor * scratch to the parameters' gradients; the scratch is used up."""
    pairs = [(p, gradient) for p, gradient in zip(parameters, scratch, strict=True) if gradient is not None]
    scratch.clear()
    if not pairs:
        return
    scaled = [gradient for _, gradient in pairs]
    torch._foreach_mul_(scaled, factor.to(scaled[0]))
    there = [(p.grad, gradient) for p, gradient in pairs if p.grad is not None]
    if there:
        torch._foreach_add_([grad for grad, _ in there], [gradient for _, gradient in there])
    for p, gradient in pairs:
        if p.grad is None:
            p.grad = gradient


def average_over_processes(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes, as DistributedDataParallel does while it runs backward."""
    world = torch.distributed.get_world_size()
    bucket: list[Tensor] = []
    for p in parameters:
        if p.grad is not None:
            bucket.append(p.grad)
        if sum(gradient.numel() for gradient in bucket) >= BUCKET:
            _average(bucket, world)
            bucket = []
    if bucket:
        _average(bucket, world)


def _average(bucket: Sequence[Tensor], world: int) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
    flat.div_(world)
    torch.distributed.all_reduce(flat)
    for gradient, mean in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
        gradient.copy_(mean.view_as(gradient))
