"""What a step's graph holds, measured on one candidate, and what there is to hold it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor

from diffpref.errors import model_error
from diffpref.types import Backbone, Probe

GIB = 2**30
KEPT_FREE = 0.1
"""Share of the free memory that is left alone: fragmentation, workspaces of the libraries."""


@contextmanager
def saved_bytes(network: torch.nn.Module) -> Iterator[Callable[[], int]]:
    """Yields what says how many bytes the graphs built inside hold, each storage once and the network's own not."""
    own = {p.untyped_storage()._cdata for p in (*network.parameters(), *network.buffers())}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        count(tensor)
        return tensor

    def count(value: object) -> None:
        if isinstance(value, Tensor) and (storage := value.untyped_storage())._cdata not in own:
            held[storage._cdata] = storage.nbytes()

    def checkpoint(function: Callable[..., Any], *arguments: Any) -> Any:
        # A checkpoint keeps its arguments itself, past the hooks.
        for argument in arguments:
            count(argument)
        return torch.utils.checkpoint.checkpoint(function, *arguments, use_reentrant=False)

    checkpointing = is_checkpointing(network)
    if checkpointing:
        network.enable_gradient_checkpointing(checkpoint)  # type: ignore[operator]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield lambda: sum(held.values())
    finally:
        if checkpointing:
            network.enable_gradient_checkpointing()  # type: ignore[operator]


def is_checkpointing(network: torch.nn.Module) -> bool:
    """Whether gradient checkpointing is on."""
    return bool(getattr(network, "is_gradient_checkpointing", False))


def candidate_bytes(model: Backbone, network: torch.nn.Module, probe: Probe) -> int:
    """Bytes that the graph of one candidate holds between its forward and its backward.

    Args:
        probe: one group of one candidate.
    """
    device = probe.x_t.device
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    with saved_bytes(network) as held:
        error = model_error(model, probe)
        allocated = torch.cuda.memory_allocated(device) - before if device.type == "cuda" else 0
        count = max(held(), allocated)
    del error
    return count


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be used: of the GPU, else of the machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    return psutil.virtual_memory().available
