"""LoRA files in the base model: merged before training, so that policy and reference both start from them, and stacked
with what was trained into one file for the bare base model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffpref.backbones.adapters.lora_file import Layer, read_lora
from diffpref.backbones.adapters.lora_stack import holding, stack

KEY = "base_adapters"
TRAINED_FILE = "trained_lora.safetensors"
"""Beside a stacked file: what was trained alone, for the base model with its adapters."""


@dataclass(frozen=True)
class BaseAdapter:
    """A LoRA file and the weight with which it is added to the base model."""

    source: str
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{Path(self.source).name}={self.weight:g}"


def parse(entry: str) -> BaseAdapter:
    """An entry of base_adapters, FILE or FILE=WEIGHT; ValueError where it names no file or the weight is no number."""
    source, sign, weight = entry.rpartition("=")
    if not sign:
        source, weight = entry, "1"
    try:
        found = BaseAdapter(source, float(weight))
    except ValueError:
        found = BaseAdapter("")
    if not found.source or found.weight != found.weight or abs(found.weight) == float("inf"):
        raise ValueError(f"{KEY} must be written as FILE or FILE=WEIGHT, like style.safetensors=0.8, got {entry!r}.")
    return found


def merge(network: torch.nn.Module, component: str, entries: Sequence[str]) -> None:
    """Add weight * scale * up @ down to the weights of every layer of every file; best in float32.

    Raises:
        ValueError: as `read_lora` does.
    """
    for adapter in map(parse, entries):
        merge_layers(network, read_lora(adapter.source, network, component, key=KEY).layers, adapter.weight)


@torch.no_grad()
def merge_layers(network: torch.nn.Module, layers: Mapping[str, Layer], weight: float = 1.0) -> None:
    """Add weight * scale * up @ down to the weight of each layer."""
    for name, layer in layers.items():
        matrix: Any = network.get_submodule(name).weight
        change = layer.up.float().flatten(1) @ layer.down.float().flatten(1)
        matrix += (weight * layer.scale * change).view(matrix.shape).to(matrix)


def stacked(
    network: torch.nn.Module, component: str, entries: Sequence[str], trained: Mapping[str, Layer], *, adapter: str
) -> Any:
    """A network without weights that holds the base adapters and what was trained as its one LoRA, to be saved.

    Args:
        network: of the class and configuration that the files are for.
        trained: the run's own LoRA.
        adapter: peft's name for the one LoRA.
    """
    parts = [(a.weight, read_lora(a.source, network, component, key=KEY).layers) for a in map(parse, entries)]
    return holding(network, stack([*parts, (1.0, trained)]), adapter=adapter)
