"""A LoRA file as the start of a run's own LoRA: of the same layers and rank, at the run's scale."""

from collections.abc import Mapping

import torch
from torch import Tensor

from diffpref.backbones.adapters.base_adapters import TRAINED_FILE
from diffpref.backbones.adapters.lora_file import DOWN, UP, Layer, LoraFile

OR_MERGE = "name the file in base_adapters, which takes any rank and layers"


def check_same_layers(file: LoraFile, wanted: Mapping[str, Layer], network: torch.nn.Module) -> None:
    """Raise ValueError where the file has other layers than the run's LoRA, or another rank; names the first one.

    Args:
        wanted: the run's LoRA.
        network: the one that it is on.
    """
    name, targets = f"adapter_weights {file.file}", _targets(file, network)
    same = f"set lora_target_modules: [{', '.join(targets)}], or {OR_MERGE}" if targets else OR_MERGE
    alone = file.file.with_name(TRAINED_FILE)
    hint = f" (What was trained there, without its base adapters, is {alone}.)" if alone.is_file() else ""
    if more := [layer for layer in file.layers if layer not in wanted]:
        raise ValueError(f"{name} has the layer {more[0]}, which this run's LoRA has not: {same}.{hint}")
    if less := [layer for layer in wanted if layer not in file.layers]:
        raise ValueError(f"{name} has not the layer {less[0]}, which this run's LoRA has: {same}.{hint}")
    if other := [layer for layer in wanted if file.layers[layer].rank != wanted[layer].rank]:
        theirs, ours = file.layers[other[0]], wanted[other[0]]
        shapes = f"{tuple(theirs.down.shape)} in place of {tuple(ours.down.shape)}"
        one = len({layer.rank for layer in file.layers.values()}) == 1
        choice = f"set rank: {theirs.rank}, or {OR_MERGE}" if one else OR_MERGE
        raise ValueError(
            f"{name}: {other[0]} has rank {theirs.rank} ({shapes}), and rank is {ours.rank}: {choice}.{hint}"
        )


def _targets(file: LoraFile, network: torch.nn.Module) -> list[str]:
    """The lora_target_modules that give exactly the file's layers; none where no list of last names does."""
    names = [name.removesuffix(".base_layer") for name, module in network.named_modules() if hasattr(module, "weight")]
    ends = {_end(layer) for layer in file.layers}
    meant = {name for name in names if _end(name) in ends}
    return sorted(ends) if meant == set(file.layers) else []


def _end(layer: str) -> str:
    """The layer's own name: what stands behind the last number, which belongs to it where it is the last part."""
    parts = layer.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])


def at_scale(file: LoraFile, scale: float) -> dict[str, Tensor]:
    """The file's tensors by peft's names, for a LoRA of this scale: its change of the weights is the file's own."""
    state: dict[str, Tensor] = {}
    for name, layer in file.layers.items():
        state[name + DOWN] = layer.down
        state[name + UP] = layer.up if layer.scale == scale else layer.up * (layer.scale / scale)
    return state
