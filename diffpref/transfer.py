"""Tensors from the host to a GPU, without the host waiting for what the GPU still has to do."""

from collections.abc import Callable

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device.

    A copy from pageable memory ends in a wait for everything that was asked of the GPU before it; from pinned memory it
    takes its turn, and the host goes on. PyTorch keeps the pinned memory until the copy has been made.

    >>> moved(torch.ones(2), torch.device("meta")).device
    device(type='meta')
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def on_each_device(table: Tensor) -> Callable[[torch.device], Tensor]:
    """The table on a device, where it stays after it was asked for once.

    >>> there = on_each_device(torch.arange(3))
    >>> there(torch.device("meta")) is there(torch.device("meta"))
    True
    """
    known = {table.device: table}

    def on(device: torch.device) -> Tensor:
        if device not in known:
            known[device] = table.to(device)
        return known[device]

    return on
