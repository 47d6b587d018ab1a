"""ImageReward: how would people rank the image among others for its prompt? (Xu et al. 2023, arXiv 2304.05977)"""

from dataclasses import dataclass

import torch

from diffpref.rewards.blip import BlipReward
from diffpref.rewards.blip_model import Recipe
from diffpref.rewards.checkpoint import hub_file, local_file
from diffpref.rewards.clip_pairs import BatchSize, Dtype
from diffpref.settings import bounds

PUBLISHED = "THUDM/ImageReward"
"""The hub repository, whose file is ImageReward.pt."""

RECIPE = Recipe(
    name="imagereward",
    max_length=35,
    layers=(0, 2, 4, 6, 7),  # dropout between them, after all but the last two
    gelu=False,
    mean=0.16717362830052426,
    std=1.0333394966054072,
)
"""zai-org/ImageReward:ImageReward/ImageReward.py. Its training took the cross entropy over the two heads' outputs
(train/src/train.py, loss_func), before mean and std: std is therefore the unit of `pair_logit`."""


@dataclass(frozen=True)
class ImageRewardSettings:
    """Which ImageReward, and what it computes in."""

    checkpoint: str = PUBLISHED
    """The published hub name, or a file like ImageReward.pt, as published or as safetensors with the same names."""
    tokenizer: str = "bert-base-uncased"
    """A hub name, or a folder with its vocab.txt."""
    dtype: Dtype = "float32"
    """What the two towers compute in; the head is always float32."""
    batch_size: BatchSize = 32
    """Images that pass through the towers at once."""

    def __post_init__(self) -> None:
        bounds.check(self)

    def load(self, device: torch.device) -> BlipReward:
        """The model in memory; its scores have no bounds, and were given their mean and deviation by its makers.

        Raises:
            ValueError: a file is missing or holds another model's weights, or the tokenizer is another model's.
        """
        file = (
            hub_file(PUBLISHED, "ImageReward.pt")
            if self.checkpoint == PUBLISHED
            else local_file(self.checkpoint, f"ImageReward.pt, or {PUBLISHED} for the published one")
        )
        return BlipReward(
            RECIPE,
            file,
            checkpoint=self.checkpoint,
            tokenizer=self.tokenizer,
            dtype=self.dtype,
            batch_size=self.batch_size,
            device=device,
        )
