"""PickScore: how much would people on Pick-a-Pic like the image for its prompt? (Kirstain et al. 2023, 2305.01569)

Any CLIPModel folder of transformers' form is a PickScore to this module: the published one, or one of the user's own.
Axes: n images, d the joint space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffpref.files.identity import files_hash
from diffpref.rewards.checkpoint import versions
from diffpref.rewards.clip_hf import LAION_H, Processor, load_config, load_model, load_processor, pooled
from diffpref.rewards.clip_pairs import BatchSize, Dtype, cosines
from diffpref.run.precision import DTYPES
from diffpref.settings import bounds

if TYPE_CHECKING:
    from transformers import CLIPModel

Dialect = Literal["scaled", "cosine", "scaled_26"]


@dataclass(frozen=True)
class PickScoreSettings:
    """Which PickScore, and in which of the units that papers print."""

    checkpoint: str = "yuvalkirstain/PickScore_v1"
    """A hub name, or a folder that CLIPModel.save_pretrained wrote."""
    processor: str = LAION_H
    """A hub name or folder of the tokenizer and preprocessor_config.json; "" for the checkpoint's own."""
    dialect: Dialect = "scaled"
    """scaled: exp(logit_scale) cos, about 20 to 23 for Stable Diffusion's images (yuvalkirstain/PickScore:README.md);
    cosine: cos (SalesforceAIResearch/DiffusionDPO:utils/pickscore_utils.py, softmax=False); scaled_26: scaled / 26
    (yifan123/flow_grpo:flow_grpo/pickscore_scorer.py)."""
    dtype: Dtype = "float32"
    """What the towers compute in."""
    batch_size: BatchSize = 32
    """Images, or prompts, that pass through a tower at once."""

    def __post_init__(self) -> None:
        bounds.check(self)

    def load(self, device: torch.device) -> "PickScore":
        """The model in memory.

        Raises:
            ValueError: files that are missing, or are not a CLIPModel's with the tokenizer and images it takes.
        """
        return PickScore(self, device)


class PickScore:
    """A CLIPModel as a reward."""

    def __init__(self, settings: PickScoreSettings, device: torch.device) -> None:
        processor = settings.processor or settings.checkpoint
        # The processor first: what is wrong with it shows before gigabytes are read.
        self.processor: Processor = load_processor(processor, load_config(settings.checkpoint))
        model, files = load_model(settings.checkpoint)
        scale = model.logit_scale.exp().item()  # in float32: in bfloat16 100 would be 99
        self.logit_scale = scale
        self.unit = {"scaled": scale, "cosine": 1.0, "scaled_26": scale / 26}[settings.dialect]
        self.dtype, self.device, self.batch_size = DTYPES[settings.dtype], device, settings.batch_size
        self.model: CLIPModel = model.to(device=device, dtype=self.dtype)  # type: ignore[arg-type]
        self.provenance = {
            "scorer": "pickscore",
            "checkpoint": settings.checkpoint,
            "sha256": files_hash(files),
            "preprocessing": self.processor.rule.name(),
            "tokenizer": f"{processor} ({type(self.processor.tokenizer).__name__}, {self.processor.length} tokens)",
            "dtype": settings.dtype,
            "unit": settings.dialect,
            **versions("torch", "transformers", "pillow"),
        }

    def encode_images(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """The images' embeddings, as long as the model makes them."""
        found = self.model.get_image_features(pixel_values=self.processor.rule(images, self.device).to(self.dtype))
        return pooled(found)

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """The texts' embeddings, as long as the model makes them."""
        return pooled(self.model.get_text_features(input_ids=self.processor.tokens(texts).to(self.device)))

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """exp(logit_scale) cos(image, prompt) in the dialect's unit (PickScore:README.md, `calc_probs`)."""
        return self.unit * cosines(self, images, prompts, batch_size=self.batch_size)

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """exp(logit_scale) (cos of a - cos of b), whose sigmoid is the model's probability that a is preferred."""
        return (a - b) * (self.logit_scale / self.unit)
