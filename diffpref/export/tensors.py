"""The tensors of an export as a file can hold them: in one precision, each in memory of its own."""

from collections.abc import Mapping

import torch
from torch import Tensor

from diffpref.backbones.adapters.lora_file import DOWN, UP, Layer
from diffpref.backbones.adapters.lora_stack import Layers, tensors_of


def apart(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors in this precision, none in the memory of another, which the format refuses.

    T5 has its embedding under two names, and queries, keys and values may share a matrix of a LoRA.

    Args:
        dtype: None leaves them in their own.

    Raises:
        ValueError: a value that the precision cannot hold; names the tensor.
    """
    found: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        kept = tensor.detach().to(dtype or tensor.dtype).contiguous()
        if not kept.isfinite().all():
            raise ValueError(f"{name} has values that {kept.dtype} cannot hold: use --dtype bfloat16 or float32.")
        found[name] = kept.clone() if kept.data_ptr() in places else kept
        places.add(kept.data_ptr())
    return found


def layers_apart(layers: Layers, dtype: torch.dtype | None) -> Layers:
    """The matrices of a LoRA, as `apart`."""
    found = apart(tensors_of(layers), dtype)
    return {name: Layer(found[name + DOWN], found[name + UP], layer.scale) for name, layer in layers.items()}
