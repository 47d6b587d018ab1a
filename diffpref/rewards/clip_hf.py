"""CLIP in transformers' form: a folder or hub name of a CLIPModel, and of the tokenizer and image rule beside it.

Axes: n images or texts, l tokens, s the square's side in pixels, d the joint space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from diffpref.rewards.checkpoint import weight_files
from diffpref.rewards.vision import CLIP_MEAN, CLIP_STD, normalise, transformers_square

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase

LAION_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""Where PickScore and MPS take their tokenizer and image rule from."""


@dataclass(frozen=True)
class ImageRule:
    """transformers' CLIP image processing in numbers."""

    shorter: int
    """The shorter side after the resize, in pixels."""
    crop: int
    """The side of the middle square that is kept, in pixels."""
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def name(self) -> str:
        """The rule in words, for provenance."""
        normal = "CLIP's" if (self.mean, self.std) == (CLIP_MEAN, CLIP_STD) else f"mean {self.mean}, std {self.std}"
        return (
            f"to RGB; shorter side {self.shorter}, bicubic, antialiased, 8 bit (Pillow); centre crop {self.crop}, odd "
            f"surplus down; normalised by {normal}"
        )

    def __call__(self, images: Sequence[Image.Image], device: torch.device) -> Float[Tensor, "n 3 s s"]:
        """The images as the model takes them, in float32 on the device."""
        squares = torch.stack([transformers_square(image, self.shorter, crop=self.crop) for image in images])
        return normalise(squares.to(device).float() / 255, self.mean, self.std)


@dataclass(frozen=True)
class Processor:
    """A tokenizer and an image rule that fit the model."""

    tokenizer: "PreTrainedTokenizerBase"
    length: int
    """Tokens of every text, the end token among them; longer ones are cut, shorter ones padded."""
    rule: ImageRule

    def tokens(self, texts: Sequence[str]) -> Int[Tensor, "n l"]:
        """The texts' token ids on the CPU. Texts are causal, so what pads them does not move the end token's state."""
        given = {"padding": "max_length", "truncation": True, "max_length": self.length, "return_tensors": "pt"}
        return self.tokenizer(list(texts), **given)["input_ids"]


def load_processor(name: str, config: "CLIPConfig") -> Processor:
    """The tokenizer and image rule of a folder or hub name, checked against the model's configuration.

    Raises:
        ValueError: no tokenizer there, or one of another vocabulary; an image rule that is not CLIP's, or of another
            size than the model's.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as problem:
        raise ValueError(
            f"processor {name!r}: no tokenizer can be loaded ({type(problem).__name__}: {problem}); name a folder or "
            'hub name with a CLIP tokenizer, or "" for the checkpoint\'s own folder.'
        ) from None
    text = config.text_config
    assert text is not None and not isinstance(text, dict)
    assert isinstance(text.eos_token_id, int)
    length = min(int(tokenizer.model_max_length), int(text.max_position_embeddings))
    _check_end(name, tokenizer, text.eos_token_id, text.vocab_size)
    return Processor(tokenizer, length, _image_rule(name, config))


def load_config(name: str) -> "CLIPConfig":
    """The CLIP configuration of a folder or hub name; raises ValueError where there is none."""
    from transformers import CLIPConfig

    try:
        return CLIPConfig.from_pretrained(name)
    except (OSError, ValueError) as problem:
        raise ValueError(
            f"{name!r}: no config.json of a CLIPModel can be loaded ({type(problem).__name__}: {problem}); name a "
            "folder, or a hub name that is cached or reachable."
        ) from None


def load_model(checkpoint: str) -> "tuple[CLIPModel, list[Path]]":
    """A CLIPModel in float32 on the CPU, and the files that its weights are from.

    Raises:
        ValueError: nothing there that transformers can load, or weights other than the model's own.
    """
    from transformers import CLIPModel
    from transformers.utils import cached_file

    try:
        # Float32 whatever the files hold, so that exp(logit_scale) is never of a rounded number.
        loaded: Any = CLIPModel.from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True)
        model, info = loaded
        folder = Path(str(cached_file(checkpoint, "config.json"))).parent
    except (OSError, ValueError, RuntimeError) as problem:
        raise ValueError(
            f"checkpoint {checkpoint!r} cannot be loaded as a CLIPModel ({type(problem).__name__}: {problem}); name a "
            "folder that CLIPModel.save_pretrained wrote, or a hub name that is cached or reachable."
        ) from None
    files = weight_files(folder)
    told = [f"{kind.replace('_', ' ')} like {sorted(map(str, found))[0]!r}" for kind, found in info.items() if found]
    if told:
        raise ValueError(
            f"{files[0]} holds other weights than a CLIPModel of its config.json: {'; '.join(told)}. "
            "Write the folder with CLIPModel.save_pretrained, with both towers, both projections and logit_scale."
        )
    return model.eval().requires_grad_(False), files


def pooled(output: object) -> Tensor:
    """The projected embedding: transformers 5 returns it as `pooler_output`, transformers 4 by itself."""
    embedding = getattr(output, "pooler_output", output)
    assert isinstance(embedding, Tensor)
    return embedding


def _check_end(name: str, tokenizer: "PreTrainedTokenizerBase", eos_token_id: int, vocabulary: int) -> None:
    """Refuse a tokenizer whose end token the model would not find: every text would be read at another token."""
    end, largest = tokenizer.eos_token_id, max(tokenizer.get_vocab().values())
    remedy = "name the processor that the model was trained with."
    if largest >= vocabulary:
        raise ValueError(f"processor {name!r} has token ids up to {largest}, the model {vocabulary} tokens; {remedy}")
    # transformers reads a text at the largest id where eos_token_id is 2, as CLIP's first configurations have it.
    sought = largest if eos_token_id == 2 else eos_token_id
    if end != sought or tokenizer("a")["input_ids"][-1] != end:
        raise ValueError(
            f"processor {name!r} ends a text with token {end}, and the model reads it at token {sought}; {remedy}"
        )


def _image_rule(name: str, config: "CLIPConfig") -> ImageRule:
    from transformers.image_processing_base import ImageProcessingMixin

    vision = config.vision_config
    assert vision is not None and not isinstance(vision, dict) and isinstance(vision.image_size, int)
    size = vision.image_size
    folder = Path(name)
    if folder.is_dir() and not any(
        (folder / f).is_file() for f in ("preprocessor_config.json", "processor_config.json")
    ):
        return ImageRule(size, size)
    try:
        given, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except (OSError, ValueError) as problem:
        raise ValueError(
            f"processor {name!r}: its preprocessor_config.json cannot be read ({type(problem).__name__}: {problem}); "
            "repair it, or name a folder without one for CLIP's own rule."
        ) from None
    rule = _read_rule(name, given)
    if rule.crop != size:
        raise ValueError(
            f"processor {name!r} cuts images to {rule.crop} x {rule.crop} pixels, and the model takes "
            f"{size} x {size}; name the processor that the model was trained with."
        )
    return rule


def _read_rule(name: str, given: Mapping[str, Any]) -> ImageRule:
    """The rule of a preprocessor_config.json; raises ValueError where it is another than resize, crop, normalise."""
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
    size, crop = given.get("size", 224), given.get("crop_size", 224)
    shorter = size.get("shortest_edge") if isinstance(size, Mapping) else size
    sides = {crop.get("height"), crop.get("width")} if isinstance(crop, Mapping) else {crop}
    usual = [
        all(given.get(step, True) is not False for step in steps),
        given.get("resample", 3) == 3,
        abs(given.get("rescale_factor", 1 / 255) * 255 - 1) < 1e-6,
        isinstance(shorter, int) and len(sides) == 1 and all(isinstance(s, int) and s <= shorter for s in sides),
        not given.get("do_pad"),
    ]
    if not all(usual):
        raise ValueError(
            f"processor {name!r}: its preprocessor_config.json must ask for bicubic (resample 3) to a shortest_edge, a "
            f"square centre crop no larger, 1/255 and mean and std, as CLIP's do; got {dict(given)}."
        )
    mean, std = (tuple(map(float, given.get(k, d))) for k, d in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)))
    (side,) = sides
    assert isinstance(shorter, int) and isinstance(side, int)
    return ImageRule(shorter, side, mean, std)
