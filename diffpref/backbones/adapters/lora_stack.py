"""Several LoRAs as one: stacked, which is exact, and cut back to a smaller rank, which says what is lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffpref.backbones.adapters.lora_file import DOWN, UP, Layer, bare_copy

Layers = Mapping[str, Layer]
"""A LoRA by the names of the network's layers."""


def stack(parts: Sequence[tuple[float, Layers]]) -> dict[str, Layer]:
    """One LoRA of scale 1, in float32, whose change of the weights is the weighted sum of the parts'.

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
    return {name: padded(torch.cat(downs), torch.cat(ups, 1), rank) for name, (downs, ups) in joined.items()}


def padded(down: Tensor, up: Tensor, rank: int) -> Layer:
    """A layer of scale 1 and this rank, filled up with zeros."""
    short = rank - len(down)
    return Layer(
        torch.cat([down, down.new_zeros(short, *down.shape[1:])]),
        torch.cat([up, up.new_zeros(len(up), short, *up.shape[2:])], 1),
        1.0,
    )


@dataclass(frozen=True)
class Lost:
    """What a smaller rank has lost of the squared norms of the layers' changes, as shares in [0, 1]."""

    all: float
    """Of all layers together."""
    worst: float
    layer: str
    """The layer that has lost most, with its share."""

    def __str__(self) -> str:
        return f"{self.all:.3%} of the energy is lost (most in {self.layer}: {self.worst:.3%})"


def truncate(layers: Layers, rank: int) -> tuple[dict[str, Layer], Lost]:
    """The nearest LoRA of this rank, of scale 1 in float32, and what it has lost.

    Nearest in the Frobenius norm of each layer's change (Eckart and Young 1936). QR of both factors first, then the SVD
    of a matrix of the old rank's size: no matrix of the layer's size is ever made.

    Args:
        rank: at least 1; a layer of a smaller rank is filled up with zeros."""
    found: dict[str, Layer] = {}
    lost: dict[str, float] = {}
    whole: dict[str, float] = {}
    for name, layer in layers.items():
        q_up, r_up = torch.linalg.qr(layer.scale * layer.up.detach().cpu().double().flatten(1))
        q_down, r_down = torch.linalg.qr(layer.down.detach().cpu().double().flatten(1).T)
        left, values, right = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
        energy, root = values.square(), values[:rank].sqrt()
        whole[name], lost[name] = float(energy.sum()), float(energy[rank:].sum())
        up = (q_up @ left[:, :rank] * root).float().view(-1, len(root), *layer.up.shape[2:])
        down = (root[:, None] * (right[:rank] @ q_down.T)).float().view(-1, *layer.down.shape[1:])
        found[name] = padded(down, up, rank)
    shares = {name: lost[name] / whole[name] if whole[name] else 0.0 for name in layers}
    worst = max(shares, key=lambda name: shares[name])
    total = sum(whole.values())
    return found, Lost(sum(lost.values()) / total if total else 0.0, shares[worst], worst)


def tensors_of(layers: Layers) -> dict[str, Tensor]:
    """The matrices by peft's names."""
    return {name + end: part for name, layer in layers.items() for end, part in ((DOWN, layer.down), (UP, layer.up))}


def holding(network: torch.nn.Module, layers: Layers, *, adapter: str) -> Any:
    """A network without weights of the same class and configuration, with a LoRA of scale 1 in it, to be saved.

    Args:
        adapter: peft's name for the LoRA.
    """
    bare, tensors = bare_copy(network), tensors_of(layers)
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    bare.load_lora_adapter(shapes, prefix=None, adapter_name=adapter, low_cpu_mem_usage=True)
    # peft holds an adapter where the layer's weight is, and here there is none.
    for name, tensor in tensors.items():
        layer, side = name.removesuffix(".weight").rsplit(".", 1)
        getattr(bare.get_submodule(layer), side)[adapter].weight = torch.nn.Parameter(tensor, requires_grad=False)
    return bare
