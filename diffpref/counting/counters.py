"""One counter of kernel launches, FLOPs, and live bytes with their peak.

FLOPs come from the formulas of `torch.utils.flop_counter`, not from its FlopCounterMode: that one holds tensors under
gradient checkpointing, which would raise the peak of live bytes by gigabytes.
"""

import weakref
from collections.abc import Iterable
from functools import cache
from typing import Any, no_type_check

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

GIB = 2**30
_NO_KERNEL = frozenset(
    ["empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view", "lift_fresh"]
    + ["_local_scalar_dense", "is_nonzero", "is_same_size", "sym_size", "sym_stride", "sym_numel", "sym_storage_offset"]
)
"""Beside views, what the dispatcher sees and no GPU runs."""
_SAME_FLOPS = {torch.ops.aten.addmm_: torch.ops.aten.addmm}
"""Operators without a formula of their own in torch, and the one that it has."""


class Usage(TorchDispatchMode):
    """Counts what runs inside; tensors that were there before are not counted unless `hold` names them.

    `flops` are those of matrix products, convolutions and attention, a multiply-add being 2. A launch is an operator
    that does work on tensors: views and allocations are none. One that a GPU runs as several kernels, such as the
    backward of a normalization, counts once. `peak_bytes` is exact for the tensors; what an allocator rounds up and
    what libraries take as workspace is not in it."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.flops = 0
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: set[int] = set()

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count these tensors as live from here on."""
        for tensor in tensors:
            self._see(tensor)

    def restart_peak(self) -> None:
        """Forget the peak so far; what is live now stays."""
        self.peak_bytes = self.live_bytes

    @no_type_check
    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        name, size = storage._cdata, storage.nbytes()
        if name in self._known:
            return
        self._known.add(name)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._free, name, size).atexit = False

    @no_type_check
    def _free(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.live_bytes -= size

    # Called for every operator: the tests' checks of types would double its time.
    @no_type_check
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.launches += launches_kernel(func)
        formula = flop_registry.get(_SAME_FLOPS.get(func._overloadpacket, func._overloadpacket))
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            # What shares an input's memory was there before, or is counted already.
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                self._see(tensor)
        return out


@cache
def launches_kernel(func: Any) -> bool:
    """Whether an operator does work on a device, rather than describe the same memory anew or allocate some."""
    schema = func._schema
    if schema.name.split("::")[1] in _NO_KERNEL:
        return False
    written = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
    aliased = bool(schema.returns) and all(r.alias_info is not None for r in schema.returns)
    return written or not aliased
