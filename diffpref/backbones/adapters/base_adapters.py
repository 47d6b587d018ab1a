"""LoRA files in the base model: merged before training, so that policy and reference both start from them, and stacked
with what was trained into one file for the bare base model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpref.backbones.adapters.lora_file import DOWN, UP, Layer, bare_copy, read_lora

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


@torch.no_grad()
def merge(network: torch.nn.Module, component: str, entries: Sequence[str]) -> None:
    """Add weight * scale * up @ down to the weights of every layer of every file; best in float32.

    Raises:
        ValueError: as `read_lora` does.
    """
    for adapter in map(parse, entries):
        for name, layer in read_lora(adapter.source, network, component, key=KEY).layers.items():
            weight: Any = network.get_submodule(name).weight
            change = layer.up.float().flatten(1) @ layer.down.float().flatten(1)
            weight += (adapter.weight * layer.scale * change).view(weight.shape).to(weight)


def stack(parts: Sequence[tuple[float, Mapping[str, Layer]]]) -> dict[str, Tensor]:
    """One LoRA of scale 1 whose change of the weights is the weighted sum of the parts', by peft's names.

    Its rank is the sum of the ranks. The factors themselves are never added: (B1 + B2)(A1 + A2) has two products more
    than B1 A1 + B2 A2. Where a layer is not in every part, zeros fill it up: a file of one rank is read alike by all
    programs."""
    joined: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for weight, layers in parts:
        for name, layer in layers.items():
            downs, ups = joined.setdefault(name, ([], []))
            downs.append(layer.down.detach().cpu().float())
            ups.append(weight * layer.scale * layer.up.detach().cpu().float())
    rank = max(sum(len(down) for down in downs) for downs, _ in joined.values())
    found: dict[str, Tensor] = {}
    for name, (downs, ups) in joined.items():
        down, up = torch.cat(downs), torch.cat(ups, 1)
        short = rank - len(down)
        found[name + DOWN] = torch.cat([down, down.new_zeros(short, *down.shape[1:])])
        found[name + UP] = torch.cat([up, up.new_zeros(len(up), short, *up.shape[2:])], 1)
    return found


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
    bare, tensors = bare_copy(network), stack([*parts, (1.0, trained)])
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    bare.load_lora_adapter(shapes, prefix=None, adapter_name=adapter, low_cpu_mem_usage=True)
    # peft holds an adapter where the layer's weight is, and here there is none.
    for name, tensor in tensors.items():
        layer, side = name.removesuffix(".weight").rsplit(".", 1)
        getattr(bare.get_submodule(layer), side)[adapter].weight = torch.nn.Parameter(tensor, requires_grad=False)
    return bare
