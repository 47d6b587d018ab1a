"""CLIPScore: does the image show what the prompt says? (Hessel et al. 2021, 2104.08718) In three conventions.

Axes: n images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffpref.rewards.clip_open import MIDDLE_SQUARE, OpenClip, find_weights, middle_square
from diffpref.rewards.clip_pairs import BatchSize, Dtype, cosines
from diffpref.settings import bounds

Convention = Literal["cosine", "hessel", "torchmetrics"]
UNITS: dict[str, float] = {"cosine": 1.0, "hessel": 2.5, "torchmetrics": 100.0}
"""Score of a cosine of 1: jmhessel/clipscore:clipscore.py's w; torchmetrics:functional/multimodal/clip_score.py."""
PREFIX = "A photo depicts "
"""What the paper's code puts before every caption (jmhessel/clipscore:clipscore.py, CLIPCapDataset)."""


@dataclass(frozen=True)
class CLIPScoreSettings:
    """Which CLIP, and in which of the units that papers print."""

    checkpoint: str = "openai"
    """One of open_clip's tags of weights for the architecture, or a local file of its weights."""
    architecture: str = "ViT-L-14-quickgelu"
    """open_clip's name of the model; OpenAI's weights need QuickGELU. Hessel et al. used ViT-B-32-quickgelu."""
    convention: Convention = "cosine"
    """cosine: cos; hessel: 2.5 max(cos, 0) of "A photo depicts " + prompt; torchmetrics: max(100 cos, 0) of each
    image, where torchmetrics cuts the mean at 0. Images and tokens are open_clip's in all three; torchmetrics
    itself takes transformers', a pixel apart at odd surpluses."""
    dtype: Dtype = "float32"
    """What the towers compute in."""
    batch_size: BatchSize = 32
    """Images, or prompts, that pass through a tower at once."""

    def __post_init__(self) -> None:
        bounds.check(self)

    def load(self, device: torch.device) -> "CLIPScore":
        """The model in memory.

        Raises:
            ValueError: no such architecture; weights that are missing or of another one.
        """
        return CLIPScore(self, device)


class CLIPScore:
    """An open_clip model as a reward."""

    def __init__(self, settings: CLIPScoreSettings, device: torch.device) -> None:
        weights = find_weights(settings.architecture, settings.checkpoint)
        self.clip = OpenClip(
            settings.architecture, weights, dtype=settings.dtype, device=device, preprocess=middle_square
        )
        self.convention, self.batch_size = settings.convention, settings.batch_size
        checkpoint = f"{settings.architecture} {settings.checkpoint}"
        self.provenance = {
            **self.clip.provenance("clipscore", checkpoint=checkpoint, rule=MIDDLE_SQUARE),
            "unit": settings.convention,
        }

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """The cosine of image and prompt, in the convention's unit."""
        prefix = PREFIX if self.convention == "hessel" else ""
        found = cosines(self.clip, images, [prefix + prompt for prompt in prompts], batch_size=self.batch_size)
        return found if self.convention == "cosine" else UNITS[self.convention] * found.clamp(min=0)

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """exp(logit_scale) (cos of a - cos of b), which is 100 times the difference for OpenAI's weights.

        A cosine below 0, which hessel and torchmetrics print as 0, counts as 0."""
        return (a - b) * (self.clip.logit_scale / UNITS[self.convention])
