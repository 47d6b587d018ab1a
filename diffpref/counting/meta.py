"""Makes code that was written for a GPU run on meta tensors: fused attention, autocast, and values read as ones."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, no_type_check

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
_READS = frozenset([aten._local_scalar_dense.default, aten.is_nonzero.default])
_ATTENTION = F.scaled_dot_product_attention


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """As `scaled_dot_product_attention`; meta tensors go through PyTorch's fused kernel, as on a GPU.

    By itself attention on meta tensors saves the matrix of scores. The efficient kernel's shapes stand for flash and
    cuDNN too: all save q, k, v, the output and one float a query and head."""
    if not query.is_meta or attn_mask is not None:
        return _ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, **options)
    graph = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    return aten._scaled_dot_product_efficient_attention(query, key, value, None, graph, dropout_p, is_causal)[0]


class _ReadAsOnes(TorchDispatchMode):
    """A value that the host reads from a meta tensor is one, and a copy to another device is full of ones."""

    # Called for every operator: the tests' checks of types would double its time.
    @no_type_check
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        given = args[0] if args else None
        if isinstance(given, Tensor) and given.is_meta:
            if func in _READS:
                return True if given.dtype == torch.bool else 1.0 if given.is_floating_point() else 1
            device = kwargs.get("device")
            if func is aten._to_copy.default and device is not None and torch.device(device).type != "meta":
                return torch.ones(given.shape, dtype=kwargs.get("dtype") or given.dtype, device=device)
        return func(*args, **kwargs)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Inside, meta tensors take the path that a GPU's would take."""
    # Not a function mode: one is off inside `backward`, where gradient checkpointing runs the layers again.
    with _replaced(F, scaled_dot_product_attention=_fused_attention), _autocast_is(None), _ReadAsOnes():
        yield


Region = Callable[[], AbstractContextManager[Any]]
"""One use of autocast, or of none."""


@contextmanager
def autocast(dtype: torch.dtype) -> Iterator[Region]:
    """What `torch.autocast("cuda", dtype)` does to these networks, for meta tensors, which it does not know.

    Matrix products, convolutions and attention run in `dtype`; normalizations and squared errors in float32. Yields the
    context of one use of autocast, in which a trained weight is cast once. Outside those, such as where gradient
    checkpointing runs a layer again in the backward pass, the same rules hold and every use is cast anew. The tests
    compare what autograd saves with torch's own."""
    regions: list[dict[int, Tensor]] = []

    def half(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not (regions and value.is_leaf and value.requires_grad):
            return value.to(dtype)
        # As autocast's own cache, which keeps casts of trained weights alone.
        if id(value) not in regions[-1]:
            regions[-1][id(value)] = value.to(dtype)
        return regions[-1][id(value)]

    def single(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    def cast(function: Callable[..., Any], to: Callable[[Any], Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*map(to, args), **{name: to(value) for name, value in kwargs.items()})

        return call

    @contextmanager
    def region() -> Iterator[None]:
        regions.append({})
        try:
            yield
        finally:
            regions.pop()

    functions = {name: cast(getattr(F, name), half) for name in ("linear", "conv2d", "scaled_dot_product_attention")}
    functions |= {name: cast(getattr(F, name), single) for name in ("layer_norm", "group_norm", "mse_loss")}
    with _replaced(F, **functions), _autocast_is(dtype):
        yield region


@contextmanager
def _autocast_is(dtype: torch.dtype | None) -> Iterator[None]:
    """What torch says about autocast on meta tensors, by itself an error."""
    enabled, of = torch.is_autocast_enabled, torch.get_autocast_dtype
    with _replaced(
        torch,
        is_autocast_enabled=lambda kind=None: dtype is not None if kind == "meta" else enabled(*filter(None, [kind])),
        get_autocast_dtype=lambda kind: dtype if kind == "meta" else of(kind),
    ):
        yield


@contextmanager
def _replaced(module: Any, **functions: Callable[..., Any]) -> Iterator[None]:
    before = {name: getattr(module, name) for name in functions}
    for name, function in functions.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)
