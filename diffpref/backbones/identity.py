"""A name for weights, by their values."""

import hashlib

import torch


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
