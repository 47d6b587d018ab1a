"""A BLIP reward model with its tokenizer: what ImageReward and CycleReward do with images and prompts.

Axes: n images of s x s pixels, l tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from diffpref.files.identity import files_hash
from diffpref.rewards.blip_model import Recipe, read_model
from diffpref.rewards.checkpoint import versions
from diffpref.rewards.clip_pairs import Dtype
from diffpref.rewards.vision import in_batches, normalise, torchvision_square, unique
from diffpref.run.precision import DTYPES

if TYPE_CHECKING:
    from transformers import BertTokenizer


def read_tokenizer(source: str, *, vocabulary: int) -> "BertTokenizer":
    """BERT's tokenizer with BLIP's two tokens behind its own: [DEC], 30522, and [ENC], 30523 (salesforce/BLIP:
    models/blip.py, init_tokenizer). Neither reward model puts them into a prompt.

    Args:
        source: hub name, or folder with vocab.txt.
        vocabulary: tokens that the model knows.
    """
    from transformers import BertTokenizer

    try:
        tokenizer = BertTokenizer.from_pretrained(source)
    except (OSError, ValueError) as problem:
        reason = " ".join(str(problem).split())
        raise ValueError(
            f"tokenizer {source!r} is neither a folder with vocab.txt nor to be had from the hub; "
            f"download bert-base-uncased and name its folder. ({reason:.200})"
        ) from None
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    # Where vocab.txt cannot be had, transformers makes a tokenizer of five tokens and says nothing.
    if len(tokenizer) != vocabulary:
        raise ValueError(
            f"tokenizer {source!r} has {len(tokenizer)} tokens, BLIP's own two among them, and the model knows "
            f"{vocabulary}; download bert-base-uncased, which has 30524, and name its folder."
        )
    return tokenizer


class BlipReward:
    """A BLIP reward model in memory with its tokenizer.

    Args:
        checkpoint: what the user called `file`, for the provenance.
    """

    def __init__(
        self,
        recipe: Recipe,
        file: Path,
        *,
        checkpoint: str,
        tokenizer: str,
        dtype: Dtype,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.recipe, self.batch_size, self.device = recipe, batch_size, device
        self.model = read_model(recipe, file, dtype=DTYPES[dtype]).to(self.device)
        self.tokenizer = read_tokenizer(tokenizer, vocabulary=self.model.text.config.vocab_size)
        self.provenance = {
            "scorer": recipe.name,
            "checkpoint": checkpoint,
            "sha256": files_hash([file]),
            "preprocessing": f"shorter side {self.model.size}, bicubic, antialiased, 8 bit (Pillow); centre crop, odd "
            "surplus to even; to RGB; normalised by CLIP's",
            "tokenizer": f"{tokenizer} (BertTokenizer, {recipe.max_length} tokens)",
            "dtype": dtype,
            "unit": f"(head - {recipe.mean}) / {recipe.std}",
            **versions("torch", "transformers", "pillow"),
        }

    def pixels(self, images: Sequence[Image.Image]) -> Float[Tensor, "n 3 s s"]:
        """The images as both models were published to see them (see `torchvision_square`), normalised."""
        squares = torch.stack([torchvision_square(image, self.model.size) for image in images])
        return normalise(squares.to(self.device).float() / 255)

    def tokens(self, prompts: Sequence[str]) -> tuple[Int[Tensor, "n l"], Int[Tensor, "n l"]]:
        """The prompts' tokens, cut or padded to `max_length`, and 1 where a token is no padding."""
        found = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.recipe.max_length,
            return_tensors="pt",
        )
        return found["input_ids"].to(self.device), found["attention_mask"].to(self.device)

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """(head - mean) / std of each image for its prompt, unbounded, float32 on the CPU."""
        if len(images) != len(prompts):
            raise ValueError(f"a reward needs one prompt per image, got {len(prompts)} for {len(images)} images.")
        if not images:
            return torch.zeros(0)
        once, places = unique(prompts)
        ids, mask = self.tokens(once)
        found: list[Tensor] = []
        for batch in in_batches(range(len(images)), self.batch_size):
            rows = torch.tensor([places[i] for i in batch], device=self.device)
            found.append(self.model(self.pixels([images[i] for i in batch]), ids[rows], mask[rows]))
        return torch.cat(found).cpu()

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The difference of the heads' outputs, std (a - b): its sigmoid is what was trained, before any unit."""
        return (a - b) * self.recipe.std
