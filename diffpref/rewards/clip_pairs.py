"""How alike are images and prompts? The cosine of two towers' embeddings, whichever library the towers are from.

Axes: n pairs, d the joint space.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from annotated_types import Ge
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffpref.rewards.vision import in_batches, unique

Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
"""What the towers compute in; whatever comes after them is float32."""
BatchSize: TypeAlias = Annotated[int, Ge(1)]
"""How many images, or prompts, pass through a model at once."""


@runtime_checkable
class TwoTowers(Protocol):
    """Images and texts as embeddings in one space, not normalised, in the towers' own dtype."""

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
    """The cosine in [-1, 1] of each image and its prompt, float32 on the CPU; no prompt is encoded twice."""
    if len(images) != len(prompts):
        raise ValueError(f"a reward needs one prompt per image, got {len(prompts)} for {len(images)} images.")
    if not images:
        return torch.zeros(0)
    once, places = unique(prompts)
    texts = torch.cat([directions(towers.encode_texts(batch)) for batch in in_batches(once, batch_size)])
    of_image = torch.tensor(places, device=texts.device)
    found: list[Tensor] = []
    for batch, rows in zip(in_batches(images, batch_size), of_image.split(batch_size), strict=True):
        found.append((directions(towers.encode_images(batch)) * texts[rows]).sum(-1))
    return torch.cat(found).cpu()
