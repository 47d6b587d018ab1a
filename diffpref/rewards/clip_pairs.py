"""How alike are pictures and prompts? The cosine of two towers' embeddings, whichever library the towers are from.

Axes: n pairs, d the joint space.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffpref.rewards.vision import in_batches, unique

Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
"""What the towers compute in; whatever comes after them is float32."""


@runtime_checkable
class TwoTowers(Protocol):
    """Pictures and texts as embeddings in one space, not normalised, in the towers' own dtype."""

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor: ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor: ...


def directions(embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The embeddings at length 1, in float32.

    They become float32 first: a bfloat16 near 0.2 has steps of 0.001, which is more than most pairs differ by."""
    embeddings = embeddings.float()
    return embeddings / embeddings.norm(dim=-1, keepdim=True)


@torch.no_grad()
def cosines(
    towers: TwoTowers, images: Sequence[Image.Image], prompts: Sequence[str], *, batch_size: int
) -> Float[Tensor, " n"]:
    """The cosine in [-1, 1] of each picture and its prompt, float32 on the CPU; no prompt is encoded twice."""
    if len(images) != len(prompts):
        raise ValueError(f"a reward needs one prompt a picture, got {len(prompts)} for {len(images)} pictures.")
    if not images:
        return torch.zeros(0)
    once, places = unique(prompts)
    texts = torch.cat([directions(towers.encode_texts(batch)) for batch in in_batches(once, batch_size)])
    of_picture = torch.tensor(places, device=texts.device)
    found: list[Tensor] = []
    for batch, rows in zip(in_batches(images, batch_size), of_picture.split(batch_size), strict=True):
        found.append((directions(towers.encode_images(batch)) * texts[rows]).sum(-1))
    return torch.cat(found).cpu()


def check_batch_size(batch_size: int) -> None:
    """Raises ValueError unless a batch holds something."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or above, got {batch_size}.")
