"""CLIP in open_clip's form: an architecture by name, its weights from a file or a published tag, and its tokenizer.

Axes: n images or texts, s the square's side in pixels, d the joint space.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffpref.files.identity import files_hash
from diffpref.rewards.checkpoint import load_strictly, local_file, read_tensors, versions
from diffpref.rewards.clip_pairs import Dtype
from diffpref.rewards.vision import CLIP_MEAN, CLIP_STD, normalise, torchvision_square
from diffpref.run.precision import DTYPES
from diffpref.settings.typed import nearest

if TYPE_CHECKING:
    from open_clip import CLIP

Preprocess = Callable[[Image.Image, int], Tensor]
"""(image, side) -> the square "3 s s" in [0, 1], before the normalisation."""

MIDDLE_SQUARE = (
    "shorter side {side}, bicubic, antialiased, 8 bit (Pillow); centre crop {side}, odd surplus to even; to RGB"
)
"""`middle_square` in words, for provenance."""


def middle_square(image: Image.Image, size: int) -> Float[Tensor, "3 s s"]:
    """The middle square in [0, 1], which is open_clip's own preprocess_val before its normalisation."""
    return torchvision_square(image, size).float() / 255


@dataclass(frozen=True)
class Weights:
    """A file of weights, and what it was trained on."""

    path: Path
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    published: bool = False
    """One of open_clip's tags, whose older key names it converts."""


def find_weights(architecture: str, checkpoint: str) -> Weights:
    """The weights of one of open_clip's tags, like "openai", downloaded once; else the local file of that name.

    Raises:
        ValueError: neither; a tag that was trained with another activation than the architecture's, or on images
            that are not resized to a middle square; no network.
    """
    from open_clip import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

    quick_gelu = bool(_config(architecture).get("quick_gelu", False))
    found = get_pretrained_cfg(architecture, checkpoint)
    if not found:
        tags = list_pretrained_tags_by_model(architecture)
        return Weights(local_file(checkpoint, f"a file of {architecture}'s weights, or one of open_clip's tags {tags}"))
    if quick_gelu != bool(found.get("quick_gelu", False)):
        base = architecture.removesuffix("-quickgelu")
        trained, remedy = ("without", base) if quick_gelu else ("with", f"{base}-quickgelu")
        raise ValueError(
            f"checkpoint {checkpoint!r} was trained {trained} QuickGELU and {architecture} is not; "
            f"set architecture to {remedy!r}."
        )
    if (found.get("resize_mode", "shortest"), found.get("interpolation", "bicubic")) != ("shortest", "bicubic"):
        raise ValueError(
            f"checkpoint {checkpoint!r} of {architecture} takes images resized by {found.get('resize_mode')}, "
            f"{found.get('interpolation')}; this reward cuts a middle square, bicubic: name a tag that was trained so."
        )
    try:
        path = Path(download_pretrained(found))
    except Exception as problem:
        raise ValueError(
            f"checkpoint {checkpoint!r} of {architecture} is neither cached nor reachable "
            f"({type(problem).__name__}: {problem}); download it where there is a network, and name the file."
        ) from None
    return Weights(path, tuple(found.get("mean") or CLIP_MEAN), tuple(found.get("std") or CLIP_STD), published=True)


class OpenClip:
    """An open_clip model in memory: two towers, and how they see images."""

    def __init__(
        self, architecture: str, weights: Weights, *, dtype: Dtype, device: torch.device, preprocess: Preprocess
    ) -> None:
        from open_clip import get_tokenizer

        model = _load(architecture, weights)
        self.weights, self.preprocess, self.device = weights, preprocess, device
        self.tokenizer = get_tokenizer(architecture)
        self.logit_scale = model.logit_scale.float().exp().item()  # before the cast: in bfloat16 100 would be 99
        side: int | tuple[int, int] = model.visual.image_size  # type: ignore[assignment]
        self.size = int(side if isinstance(side, int) else side[0])
        self.dtype = DTYPES[dtype]
        self.model = model.to(device=device, dtype=self.dtype)

    def pixels(self, images: Sequence[Image.Image]) -> Float[Tensor, "n 3 s s"]:
        """The images as the model takes them, in float32 on the device."""
        squares = torch.stack([self.preprocess(image, self.size) for image in images])
        return normalise(squares.to(self.device), self.weights.mean, self.weights.std)

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """The images' embeddings, as long as the model makes them."""
        return self.model.encode_image(self.pixels(images).to(self.dtype))

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """The texts' embeddings, as long as the model makes them; a text is cut at the model's length."""
        return self.model.encode_text(self.tokenizer(list(texts)).to(self.device))

    def provenance(self, scorer: str, *, checkpoint: str, rule: str) -> dict[str, str]:
        """What the embeddings depend on.

        Args:
            rule: how an image becomes a square, where {side} stands for the model's."""
        weights = self.weights
        normal = "CLIP's" if weights.mean == CLIP_MEAN else f"mean {weights.mean}, std {weights.std}"
        return {
            "scorer": scorer,
            "checkpoint": checkpoint,
            "sha256": files_hash([weights.path]),
            "preprocessing": f"{rule.format(side=self.size)}; normalised by {normal}",
            "tokenizer": f"open_clip {type(self.tokenizer).__name__}, {self.model.context_length} tokens",
            "dtype": str(self.dtype).removeprefix("torch."),
            **versions("torch", "open_clip_torch", "ftfy", "pillow"),
        }


def _config(architecture: str) -> dict[str, object]:
    """open_clip's numbers for a model; raises ValueError unless both of its towers are CLIP's own."""
    from open_clip import get_model_config, list_models

    config = get_model_config(architecture)
    if config is None:
        raise ValueError(
            "architecture must be one of open_clip.list_models(), like 'ViT-L-14-quickgelu'; "
            f"got {architecture!r}.{nearest(architecture, list_models())}"
        )
    if config.get("custom_text") or "multimodal_cfg" in config or "hf_model_name" in config["text_cfg"]:
        raise ValueError(f"architecture {architecture!r} has another text tower than CLIP's; take one like 'ViT-L-14'.")
    return config


def _load(architecture: str, weights: Weights) -> "CLIP":
    from open_clip import CLIP, load_checkpoint

    config = _config(architecture)
    tensors = {} if weights.published else read_tensors(weights.path)
    model = CLIP(**{key: value for key, value in config.items() if key != "custom_text"})  # type: ignore[arg-type]
    if not weights.published:
        load_strictly(model, tensors, weights.path, remedy=f"Name a file of open_clip's {architecture}.")
        return model.eval().requires_grad_(False)
    try:
        load_checkpoint(model, str(weights.path), strict=True, weights_only=True)
    except Exception as problem:
        reason = str(problem).strip().split(". ")[0]
        raise ValueError(
            f"{weights.path} is no file of {architecture}'s weights ({type(problem).__name__}: {reason:.500}); "
            "delete it, so that it is downloaded again."
        ) from None
    return model.eval().requires_grad_(False)
