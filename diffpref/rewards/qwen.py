"""What the rewards on Qwen-VL models share: the processor, one image and one question per chat, and images resized.

Axes: n images, t tokens.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from PIL import Image

from diffpref.rewards.checkpoint import hub_file
from diffpref.rewards.vision import rgb

if TYPE_CHECKING:
    from transformers import BatchFeature, ProcessorMixin

LIBRARIES = ("torch", "transformers", "pillow")
"""What a score depends on, beside the weights."""
_RATIO = 200


def smart_size(width: int, height: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(width, height) in multiples of `factor`, with about the image's ratio and an area within the two bounds.

    The rule of every Qwen-VL: QwenLM/Qwen2.5-VL:qwen-vl-utils/src/qwen_vl_utils/vision_process.py, smart_resize.

    Raises:
        ValueError: an image more than 200 times longer than wide, which the models were never shown.
    """
    if max(width, height) > _RATIO * min(width, height):
        raise ValueError(
            f"an image of {width} x {height} pixels: a Qwen-VL takes sides of a ratio of at most {_RATIO}; crop it."
        )
    sides = [max(factor, round(side / factor) * factor) for side in (width, height)]
    # The scale is the given image's, not the rounded one's, as published.
    if sides[0] * sides[1] > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        sides = [max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height)]
    elif sides[0] * sides[1] < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        sides = [math.ceil(side * grow / factor) * factor for side in (width, height)]
    return sides[0], sides[1]


def resized(image: Image.Image, *, factor: int, min_pixels: int, max_pixels: int) -> Image.Image:
    """The RGB image in its `smart_size` (bicubic, antialiased, in 8 bits)."""
    image = rgb(image)
    size = smart_size(*image.size, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels)
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def load_processor(checkpoint: str) -> "ProcessorMixin":
    """The tokenizer, chat template and image processor of a folder or a hub repository.

    Raises:
        ValueError: they cannot be loaded, or hold no chat template.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(checkpoint)
    except (OSError, ValueError, ImportError) as problem:
        reason = str(problem).strip().split("\n")[0]
        raise ValueError(f"{checkpoint}: no processor can be loaded from it ({reason}).") from problem
    if not getattr(processor, "chat_template", None):
        raise ValueError(f"{checkpoint} has no chat template: name an instruction-tuned vision-language model.")
    return processor


def inputs(
    processor: "ProcessorMixin",
    images: Sequence[Image.Image],
    questions: Sequence[str],
    *,
    padding_side: Literal["left", "right"],
    device: torch.device,
) -> "BatchFeature":
    """One chat per image, the image first and its question after it, ready for the answer; padded to the longest."""
    chats = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}] for question in questions
    ]
    texts = processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    batch = processor(
        text=texts,
        images=list(images),
        do_resize=False,  # the images come in `smart_size`
        padding=True,
        padding_side=padding_side,
        return_tensors="pt",
    )
    return batch.to(device)


def refuse_special_tokens(processor: "ProcessorMixin", prompts: Sequence[str]) -> None:
    """Raises ValueError where a prompt holds a token like <|im_end|>, which would end its own question."""
    special = [token for token in processor.tokenizer.get_added_vocab() if token.startswith("<|")]
    for place, prompt in enumerate(prompts):
        held = [token for token in special if token in prompt]
        if held:
            raise ValueError(
                f"prompt {place} ({prompt!r:.80}) holds {held[0]!r}, which the model reads as a sign of its own: "
                "remove it from the prompt."
            )


def weights_file(checkpoint: str, name: str) -> Path:
    """The file itself, the file of that name in a folder, or the one downloaded from a hub repository.

    Raises:
        ValueError: there is none.
    """
    path = Path(checkpoint).expanduser()
    for found in (path, path / name):
        if found.is_file():
            return found
    if path.exists() or path.suffix or checkpoint.count("/") != 1:
        raise ValueError(f"checkpoint {checkpoint!r} must be {name}, a folder that holds it, or a hub repository.")
    return hub_file(checkpoint, name)
