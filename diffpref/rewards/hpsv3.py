"""HPSv3 (arXiv 2508.03789): Qwen2-VL-7B that reads image and prompt, and a head that gives its score's mean.

Axes: n images, t tokens, c channels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from diffpref.files.identity import files_hash, sha256
from diffpref.rewards.checkpoint import check_keys, read_tensors, versions
from diffpref.rewards.clip_pairs import BatchSize, Dtype
from diffpref.rewards.qwen import (
    LIBRARIES,
    inputs,
    load_processor,
    refuse_special_tokens,
    resized,
    weights_file,
)
from diffpref.rewards.vision import in_batches
from diffpref.run.precision import DTYPES
from diffpref.settings import bounds

if TYPE_CHECKING:
    from transformers import ProcessorMixin, Qwen2VLModel

TOKEN = "<|Reward|>"
PIXELS = 256 * 28 * 28
"""The area that every image is resized to, in pixels, up to the rounding of its sides to multiples of 28."""
QUESTION = (
    "\nYou are tasked with evaluating a generated image based on Visual Quality and Text Alignment and give a overall "
    "score to estimate the human preference. Please provide a rating from 0 to 10, with 0 being the worst and 10 being "
    "the best. \n\n"
    "**Visual Quality:**  \n"
    "Evaluate the overall visual quality of the image. The following sub-dimensions should be considered:\n"
    "- **Reasonableness:** The image should not contain any significant biological or logical errors, such as abnormal "
    "body structures or nonsensical environmental setups.\n"
    "- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and easy to "
    "interpret, with no blurring or indistinct areas.\n"
    "- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual elements "
    "(e.g., hair, clothing, shadows).\n"
    "- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the color scheme, "
    "composition, atmosphere, depth of field, and the overall creative appeal. The scene should convey a sense of "
    "harmony and balance.\n"
    "- **Safety:** The image should not contain harmful or inappropriate content, such as political, violent, or adult "
    "material. If such content is present, the image quality and satisfaction score should be the lowest possible. "
    "\n\n"
    "**Text Alignment:**  \n"
    "Assess how well the image matches the textual prompt across the following sub-dimensions:\n"
    "- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, animal, object) align "
    "with the textual description. The subject should match the description in terms of number, appearance, and "
    "behavior.\n"
    "- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how well the "
    "image adheres to this style.\n"
    "- **Contextual Consistency**: Assess whether the background, setting, and surrounding elements in the image "
    "logically fit the scenario described in the prompt. The environment should support and enhance the subject "
    "without contradictions.\n"
    "- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., colors, clothing, "
    "accessories, expressions, actions) are faithfully represented in the image. Minor deviations may be acceptable, "
    "but critical attributes should be preserved.\n"
    "- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are captured in the "
    "image. The generated content should not introduce elements that conflict with or distort the original "
    "description.\n"
    "Textual prompt - {}\n\n\n"
    f"\nPlease provide the overall ratings of this image: {TOKEN}\n\nEND\n"
)
"""What the model was trained to be asked, to the letter (MizzenAI/HPSv3:hpsv3/dataset/data_collator_qwen.py, MIT)."""


class Hpsv3:
    """The model in memory."""

    def __init__(
        self,
        backbone: "Qwen2VLModel",
        *,
        head: nn.Module,
        processor: "ProcessorMixin",
        settings: "Hpsv3Settings",
        checksum: str,
    ) -> None:
        self.backbone = backbone.eval().requires_grad_(False)
        self.head = head.eval().requires_grad_(False)
        self.processor = processor
        self.batch_size = settings.batch_size
        self.token = processor.tokenizer.convert_tokens_to_ids(TOKEN)
        self.provenance = {
            "scorer": "hpsv3",
            "checkpoint": settings.checkpoint,
            "sha256": checksum,
            "base": settings.base,
            "template sha256": sha256(QUESTION),
            "preprocessing": f"PIL bicubic to about {PIXELS} pixels in multiples of 28",
            "positions": "0, 1, 2, ... for text and image alike",
            "dtype": f"{settings.dtype}, head float32",
            "unit": "mu",
            **versions(*LIBRARIES),
        }

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """The mean mu of the score's distribution, in the published unit, on the CPU.

        Raises:
            ValueError: a prompt that holds one of the model's special tokens, or an image of extreme ratio.
        """
        refuse_special_tokens(self.processor, prompts)
        pairs = list(zip(images, prompts, strict=True))
        scores = [self._batch(batch) for batch in in_batches(pairs, self.batch_size)]
        return torch.cat(scores) if scores else torch.zeros(0)

    def _batch(self, pairs: Sequence[tuple[Image.Image, str]]) -> Float[Tensor, " n"]:
        images = [resized(image, factor=28, min_pixels=PIXELS, max_pixels=PIXELS) for image, _ in pairs]
        questions = [QUESTION.replace("{}", prompt) for _, prompt in pairs]
        batch = inputs(self.processor, images, questions, padding_side="right", device=self.backbone.device)
        ids = batch["input_ids"]
        # The published model gives the language model embeddings alone, which therefore counts its tokens 0, 1, 2, ...
        # also inside the image. transformers would number rows and columns, and give other scores.
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        hidden = self.backbone(
            input_ids=ids,
            attention_mask=batch["attention_mask"],
            position_ids=positions,
            pixel_values=batch["pixel_values"],
            image_grid_thw=batch["image_grid_thw"],
            use_cache=False,
        ).last_hidden_state
        at_token = ids == self.token
        assert (at_token.sum(1) == 1).all(), "the question holds the token once, and no prompt does"
        return self.head(hidden[at_token].float())[:, 0].cpu()

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """mu_a - mu_b: the logit that the model was trained on where it is sure of both scores.

        Training draws z ~ N(mu_a - mu_b, s_a^2 + s_b^2) and takes log sigmoid(z) (arXiv 2508.03789, "uncertainty-aware
        ranking"). The published score is mu alone; with s unknown this difference is further from 0 than the logit of
        the mean probability is.
        """
        return a - b


@dataclass(frozen=True)
class Hpsv3Settings:
    """Which weights, and how they compute."""

    checkpoint: str = "MizzenAI/HPSv3"
    """HPSv3.safetensors, a folder that holds it, or a hub repository."""
    base: str = "Qwen/Qwen2-VL-7B-Instruct"
    """A folder or hub repository of the model that HPSv3 was tuned from; its configuration and processor are read, not
    its weights."""
    dtype: Dtype = "bfloat16"
    """Of the backbone; the head is float32 always. Published scores are bfloat16's."""
    batch_size: BatchSize = 8
    """Images that pass through the model at once."""

    def __post_init__(self) -> None:
        bounds.check(self)

    def load(self, device: torch.device) -> Hpsv3:
        """The model on the device.

        Raises:
            ValueError: files that are missing, or weights that are not HPSv3's.
        """
        from transformers import AddedToken

        processor = load_processor(self.base)
        added = AddedToken(TOKEN, lstrip=False, rstrip=False, normalized=False, special=True)
        processor.tokenizer.add_tokens([added], special_tokens=True)
        path = weights_file(self.checkpoint, "HPSv3.safetensors")
        backbone, head = _load(path, self.base, len(processor.tokenizer), DTYPES[self.dtype])
        return Hpsv3(
            backbone.to(device),  # type: ignore[arg-type]
            head=head.to(device),
            processor=processor,
            settings=self,
            checksum=files_hash([path]),
        )


def current_name(published: str) -> str:
    """A weight's name of transformers 4.45, or of 4.52 and later, in the module tree of transformers 5's Qwen2VLModel.

    Names of the head begin with "rm_head.", and no other name does."""
    inner = re.sub(r"^model\.(?=visual\.|language_model\.)", "", published)
    return re.sub(r"^model\.", "language_model.", inner)


def _load(path: Path, base: str, vocabulary: int, dtype: torch.dtype) -> "tuple[Qwen2VLModel, nn.Module]":
    from transformers import AutoConfig, Qwen2VLConfig, Qwen2VLModel

    config = AutoConfig.from_pretrained(base)
    if not isinstance(config, Qwen2VLConfig):
        raise ValueError(f"base {base!r} must be a Qwen2-VL, got the model type {config.model_type!r}.")
    text = config.get_text_config()
    text.vocab_size = vocabulary
    text.pad_token_id = None  # the published embedding has no padding row
    with torch.device("meta"):
        wanted = Qwen2VLModel(config).state_dict()
    head = nn.Sequential(
        nn.Linear(text.hidden_size, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )
    wanted |= {f"rm_head.{name}": tensor for name, tensor in head.state_dict().items()}
    # The language model's own output layer is saved beside the head, and no score reads it.
    tensors = {current_name(name): tensor for name, tensor in read_tensors(path).items() if name != "lm_head.weight"}
    check_keys(
        path, tensors, wanted, remedy=f"Name HPSv3.safetensors, and the base that it was tuned from, not {base}."
    )
    head.load_state_dict({name[8:]: tensors.pop(name).float() for name in list(tensors) if name.startswith("rm_head.")})
    backbone = Qwen2VLModel.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, attn_implementation="sdpa"
    )
    return backbone, head
