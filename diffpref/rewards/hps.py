"""Human Preference Score v2 and v2.1: a CLIP ViT-H/14 tuned on people's rankings (Wu et al. 2023, 2306.09341).

The two versions' scores are not comparable, and neither are scores of different prompts. Axes: n images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffpref.rewards.checkpoint import hub_file, local_file
from diffpref.rewards.clip_open import OpenClip, Weights
from diffpref.rewards.clip_pairs import BatchSize, Dtype, cosines
from diffpref.rewards.vision import letterbox
from diffpref.settings import bounds

REPOSITORY = "xswu/HPSv2"
FILES = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}
"""Each version's file in the repository (tgxs002/HPSv2:hpsv2/utils.py)."""


@dataclass(frozen=True)
class HPSSettings:
    """Which version, and how images are made small."""

    checkpoint: str = REPOSITORY
    """The hub repository, of which `version` chooses the file; or a local file with ["state_dict"] or safetensors."""
    version: Literal["v2.0", "v2.1"] = "v2.0"
    """For a local file only a name in the provenance."""
    antialias: bool = False
    """False as trained and published, with torchvision up to 0.16; True as the same code gives from 0.17 on."""
    architecture: str = "ViT-H-14"
    """open_clip's name of the model."""
    dtype: Dtype = "float32"
    """What the towers compute in."""
    batch_size: BatchSize = 32
    """Images, or prompts, that pass through a tower at once."""

    def __post_init__(self) -> None:
        bounds.check(self)

    def load(self, device: torch.device) -> "HPS":
        """The model in memory.

        Raises:
            ValueError: a file that is missing or holds other weights.
        """
        return HPS(self, device)


@dataclass(frozen=True)
class HPS21Settings(HPSSettings):
    """The same with the second version as the default, for the name "hpsv2.1"."""

    version: Literal["v2.0", "v2.1"] = "v2.1"


class HPS:
    """An open_clip model as a reward, with images letterboxed."""

    def __init__(self, settings: HPSSettings, device: torch.device) -> None:
        if settings.checkpoint == REPOSITORY:
            path = hub_file(REPOSITORY, FILES[settings.version])
        else:
            path = local_file(settings.checkpoint, f"{FILES[settings.version]}, or {REPOSITORY!r} to download it")
        self.batch_size = settings.batch_size
        self.clip = OpenClip(
            settings.architecture,
            Weights(path),
            dtype=settings.dtype,
            device=device,
            preprocess=partial(letterbox, antialias=settings.antialias),
        )
        how = "antialiased" if settings.antialias else "not antialiased"
        rule = f"to RGB; longer side {{side}}, bicubic, {how}, float; black to {{side}} x {{side}}, odd surplus after"
        self.provenance = {
            **self.clip.provenance(f"hps{settings.version}", checkpoint=settings.checkpoint, rule=rule),
            "unit": "cosine",
        }

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """The cosine of image and prompt, in [-1, 1] (tgxs002/HPSv2:hpsv2/img_score.py); tables print it x 100."""
        return cosines(self.clip, images, prompts, batch_size=self.batch_size)

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """exp(logit_scale) (a - b): the model was trained by cross-entropy on exp(logit_scale) cos
        (tgxs002/HPSv2:hpsv2/src/open_clip/loss.py, HPSLoss)."""
        return self.clip.logit_scale * (a - b)
