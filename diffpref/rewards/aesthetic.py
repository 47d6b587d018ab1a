"""LAION's aesthetic predictor v2: how beautiful is the image, about 1 to 10? It does not look at the prompt.

Axes: n images, d CLIP's embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float64
from PIL import Image
from torch import Tensor

from diffpref.files.identity import files_hash
from diffpref.rewards.checkpoint import check_keys, local_file, read_tensors
from diffpref.rewards.clip_open import MIDDLE_SQUARE, OpenClip, find_weights, middle_square
from diffpref.rewards.clip_pairs import BatchSize, Dtype, directions
from diffpref.rewards.vision import in_batches
from diffpref.settings import bounds

PUBLISHED = "sac+logos+ava1-l14-linearMSE.pth"
LAYERS = (0, 2, 4, 6, 7)
"""Where the published head's linear layers are; between them are dropouts alone."""


@dataclass(frozen=True)
class AestheticSettings:
    """The head, and the CLIP that it was trained on."""

    checkpoint: str = PUBLISHED
    """The head's file, which is on no hub: take it from github.com/christophschuhmann/improved-aesthetic-predictor."""
    clip: str = "openai"
    """One of open_clip's tags of weights for the architecture, or a local file of its weights."""
    architecture: str = "ViT-L-14-quickgelu"
    """open_clip's name of the model; OpenAI's weights need QuickGELU."""
    dtype: Dtype = "float32"
    """What CLIP computes in; the head is float32."""
    batch_size: BatchSize = 32
    """Images that pass through CLIP at once."""

    def __post_init__(self) -> None:
        bounds.check(self)

    def load(self, device: torch.device) -> "Aesthetic":
        """The model in memory.

        Raises:
            ValueError: a file that is missing or holds other weights.
        """
        return Aesthetic(self, device)


class Aesthetic:
    """A CLIP's image tower and an affine head as a reward."""

    def __init__(self, settings: AestheticSettings, device: torch.device) -> None:
        head = local_file(
            settings.checkpoint, f"{PUBLISHED} of github.com/christophschuhmann/improved-aesthetic-predictor"
        )
        weight, bias = read_head(head)
        weights = find_weights(settings.architecture, settings.clip)
        self.clip = OpenClip(
            settings.architecture, weights, dtype=settings.dtype, device=device, preprocess=middle_square
        )
        width = self.clip.model.visual.output_dim
        if len(weight) != width:
            raise ValueError(
                f"{head} takes embeddings of {len(weight)} numbers, and {settings.architecture} gives {width}; "
                "the published head is of ViT-L-14-quickgelu."
            )
        self.weight, self.bias, self.batch_size = (
            weight.float().to(device),
            bias.float().to(device),
            settings.batch_size,
        )
        checkpoint = f"{settings.checkpoint} on {settings.architecture} {settings.clip}"
        about = self.clip.provenance("aesthetic", checkpoint=checkpoint, rule=MIDDLE_SQUARE)
        both = f"head:{files_hash([head])} clip:{about['sha256']}"
        self.provenance = {**about, "sha256": both, "tokenizer": "none", "unit": "rating"}

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """w . e + b of the image's embedding e at length 1, about 1 to 10
        (christophschuhmann/improved-aesthetic-predictor:simple_inference.py)."""
        found = [
            directions(self.clip.encode_images(batch)) @ self.weight + self.bias
            for batch in in_batches(images, self.batch_size)
        ]
        return torch.cat(found).cpu() if found else torch.zeros(0)

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Raises ValueError: the model predicts a mean rating, and knows no probability of preference."""
        raise ValueError(
            "reward 'aesthetic' has no pair_logit: it was trained on mean ratings, not on pairs, so that a difference "
            "has no scale in nats. Take its scores, with a temperature fitted to your own pairs."
        )


def read_head(path: Path) -> tuple[Float64[Tensor, " d"], Float64[Tensor, ""]]:
    """The published five layers as one: w and b of w . e + b, composed in float64.

    Raises:
        ValueError: the file does not hold five linear layers that fit together and end in one number.
    """
    tensors = read_tensors(path)
    remedy = f"Take {PUBLISHED} of github.com/christophschuhmann/improved-aesthetic-predictor."
    first = tensors.get("layers.0.weight")
    width = first.shape[-1] if first is not None and first.ndim == 2 else 768
    sizes = (width, 1024, 128, 64, 16, 1)
    wanted: dict[str, Tensor] = {}
    for layer, inputs, outputs in zip(LAYERS, sizes[:-1], sizes[1:], strict=True):
        wanted[f"layers.{layer}.weight"] = torch.empty(outputs, inputs, device="meta")
        wanted[f"layers.{layer}.bias"] = torch.empty(outputs, device="meta")
    check_keys(path, tensors, wanted, remedy=remedy)
    weight, bias = torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for layer in LAYERS:
        matrix = tensors[f"layers.{layer}.weight"].double()
        weight, bias = matrix @ weight, matrix @ bias + tensors[f"layers.{layer}.bias"].double()
    return weight[0], bias[0]
