"""The aesthetic predictor's published layers with random weights."""

from pathlib import Path

import torch
from torch import nn

from diffpref.rewards.aesthetic import LAYERS


def head(width: int, seed: int = 0) -> nn.Sequential:
    """The published layers, dropouts and all (christophschuhmann/improved-aesthetic-predictor)."""
    sizes = (width, 1024, 128, 64, 16, 1)
    parts: dict[int, nn.Module] = {1: nn.Dropout(0.2), 3: nn.Dropout(0.2), 5: nn.Dropout(0.1)}
    parts |= {
        layer: nn.Linear(*pair) for layer, pair in zip(LAYERS, zip(sizes[:-1], sizes[1:], strict=True), strict=True)
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in parts.values():
            if isinstance(part, nn.Linear):
                part.reset_parameters()
                part.weight.data *= 2
    return nn.Sequential(*(parts[i] for i in range(8))).eval()


def save_head(module: nn.Sequential, path: Path) -> Path:
    """Write the layers under their published names."""
    torch.save({f"layers.{name}": tensor for name, tensor in module.state_dict().items()}, path)
    return path
