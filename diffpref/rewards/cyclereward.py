"""CycleReward: does the prompt lead back to the image, and the image to the prompt? (Bahng, Chan et al. 2025,
arXiv 2506.02095)"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from diffpref.rewards.blip import BlipReward
from diffpref.rewards.blip_model import Recipe
from diffpref.rewards.checkpoint import hub_file, local_file
from diffpref.rewards.clip_pairs import BatchSize, Dtype
from diffpref.settings import bounds

RECIPE = Recipe(name="cyclereward", max_length=128, layers=(0, 2, 4, 6, 8), gelu=True, mean=0.0, std=1.0)
"""hjbahng/cyclereward:cyclereward/model.py; trained with -log sigmoid of the difference of two scores (train.py)."""


@dataclass(frozen=True)
class CycleRewardSettings:
    """Which CycleReward, and what it computes in."""

    checkpoint: str = ""
    """A file like CycleReward-Combo.pth, as published or as safetensors with the same names; "" for the published one
    of `variant` from the hub."""
    variant: Literal["Combo", "I2T", "T2I"] = "Combo"
    """What it was trained on: pairs of texts (I2T), pairs of images (T2I) or both; read where checkpoint is ""."""
    tokenizer: str = "bert-base-uncased"
    """A hub name, or a folder with its vocab.txt."""
    dtype: Dtype = "float32"
    """What the two towers compute in; the head is always float32."""
    batch_size: BatchSize = 32
    """Images that pass through the towers at once."""

    def __post_init__(self) -> None:
        bounds.check(self)

    def load(self, device: torch.device) -> BlipReward:
        """The model in memory; its scores have no bounds and no unit of their own.

        Raises:
            ValueError: a file is missing or holds another model's weights, or the tokenizer is another model's.
        """
        published = f"CycleReward-{self.variant}"
        return BlipReward(
            RECIPE,
            local_file(self.checkpoint, f"{published}.pth") if self.checkpoint else _published(published),
            checkpoint=self.checkpoint or published,
            tokenizer=self.tokenizer,
            dtype=self.dtype,
            batch_size=self.batch_size,
            device=device,
        )


def _published(name: str) -> Path:
    """The makers' file from the hub, in whichever of the usual forms their repository has it."""
    problem: ValueError | None = None
    for file in (f"{name}.pth", "model.safetensors", "pytorch_model.bin"):
        try:
            return hub_file(f"carolineec/{name}", file)
        except ValueError as absent:
            problem = absent
    raise ValueError(
        f"{name} could not be had from the hub; download {name}.pth from release v1.0.0 of hjbahng/cyclereward on "
        f"GitHub, and name it as `checkpoint`. ({problem})"
    )
