"""Prompts of unequal length as one batch, and back.

A tensor of a prompt whose first axis is its tokens may differ in length from prompt to prompt. In a batch the shorter
ones end in zeros, and `NAME_mask` "n s" is true where `NAME` "n s d" has tokens. Where all are equally long there is no
mask.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffpref.types import Cond

MASK = "_mask"


def collate(prompts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of prompts, each without a batch axis, in float32; padded and with a mask where lengths differ."""
    return concatenate([{name: value.float()[None] for name, value in prompt.items()} for prompt in prompts])


def split(batch: Cond) -> list[dict[str, Tensor]]:
    """Each prompt of a batch without its padding: the way back from `collate`."""
    names = [name for name in batch if not is_mask(name, batch)]

    def own(name: str, place: int) -> Tensor:
        value, mask = batch[name][place], batch.get(name + MASK)
        return value if mask is None else value[: int(mask[place].sum())]

    return [{name: own(name, place) for name in names} for place in range(len(batch[names[0]]))]


def concatenate(batches: Sequence[Cond]) -> dict[str, Tensor]:
    """Batches one after another along their first axis; all have the same tensors, aside from masks."""
    joined: dict[str, Tensor] = {}
    for name in batches[0]:
        if is_mask(name, batches[0]):
            continue
        parts, masks = [batch[name] for batch in batches], [batch.get(name + MASK) for batch in batches]
        lengths = {part.shape[1] for part in parts if part.ndim > 1}
        if len(lengths) > 1 or any(mask is not None for mask in masks):
            everywhere = (torch.ones(part.shape[:2], dtype=torch.bool, device=part.device) for part in parts)
            given = [whole if mask is None else mask for mask, whole in zip(masks, everywhere, strict=True)]
            joined[name + MASK] = torch.cat([_padded(mask, max(lengths)) for mask in given])
            parts = [_padded(part, max(lengths)) for part in parts]
        joined[name] = torch.cat(parts)
    return joined


def is_mask(name: str, batch: Cond) -> bool:
    """Whether a tensor of the batch is the mask of another one."""
    return name.endswith(MASK) and name.removesuffix(MASK) in batch


def _padded(value: Tensor, length: int) -> Tensor:
    """The tensor with zeros after its second axis, up to the length."""
    if value.shape[1] == length:
        return value
    return torch.cat([value, value.new_zeros(len(value), length - value.shape[1], *value.shape[2:])], 1)
