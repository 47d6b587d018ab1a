"""A name for weights, by their values."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

BASE_FILE = "base.json"
"""Where a run keeps some values of the network that it started from."""
TENSORS, VALUES = 32, 16
"""About how many matrices, and how many values of each, `some_values` keeps."""


def weights_hash(module: torch.nn.Module) -> str:
    """A short name for a module's weights: equal for equal values, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        # A thousand values of each tensor, evenly spread, tell any two trained models apart and cost no second.
        picked = flat[:: max(1, flat.numel() // 1000)].contiguous()
        digest.update(picked.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def some_values(network: torch.nn.Module) -> dict[str, Any]:
    """A few values of some of a network's matrices by their names, for `has_values`; ready for JSON."""
    matrices = _matrices(network)
    names = sorted(matrices)[:: max(1, len(matrices) // TENSORS)]
    return {"dtype": _dtype_name(network), "values": {name: _picked(matrices[name]).tolist() for name in names}}


def has_values(network: torch.nn.Module, kept: Mapping[str, Any]) -> bool:
    """Whether the network has the weights that `some_values` saw, in its own precision or in theirs.

    LoRA beside the weights does not matter. Of values that were rounded twice a few differ: nine in ten must not."""
    matrices = _matrices(network)
    if not set(kept["values"]) <= set(matrices):
        return False
    dtypes: list[torch.dtype] = [getattr(torch, _dtype_name(network)), getattr(torch, kept["dtype"])]
    coarse = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    same = total = 0
    for name, values in kept["values"].items():
        ours = _picked(matrices[name]).to(coarse)
        theirs = torch.tensor(values, dtype=torch.float32).to(coarse)
        if ours.shape != theirs.shape:
            return False
        same, total = same + int((ours == theirs).sum()), total + ours.numel()
    return same >= 0.9 * total


def _matrices(network: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of two axes or more, without what LoRA has added, by the names that they have without it."""
    state = {name: tensor for name, tensor in network.state_dict().items() if ".lora_" not in name}
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if tensor.ndim > 1}


def _picked(tensor: Tensor) -> Tensor:
    """A few values, evenly spread, in float32."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // VALUES)].float().cpu()


def _dtype_name(network: torch.nn.Module) -> str:
    return str(next(network.parameters()).dtype).removeprefix("torch.")
