"""Tiny CLIPs of random weights in transformers' and open_clip's forms, and pictures for them."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

TOKENIZER = Path(__file__).parents[2] / "assets" / "tiny-sdxl" / "tokenizer"
SIZE = 32
"""Height and width of the pictures that the tiny models take, in pixels."""
LOG_100 = 4.6052
"""CLIP's logit_scale after training; in bfloat16 it is 4.59375, whose exponential is 98.9."""
PROMPTS = [
    "a red cat",
    "two dogs on the moon",
    "“curly” quotes &amp; an entity, caf\u00e9",
    "a red cat",
    "",
    "one of very many words " * 30,
]


def pictures() -> list[Image.Image]:
    """Six of as many sizes and modes."""
    random = np.random.default_rng(0)
    sizes = [(40, 40), (61, 32), (32, 47), (100, 35), (20, 31), (33, 70)]
    arrays = [random.integers(0, 256, (h // 4 + 1, w // 4 + 1, 3), dtype=np.uint8) for w, h in sizes]
    images = [Image.fromarray(a).resize(s, Image.Resampling.BICUBIC) for a, s in zip(arrays, sizes, strict=True)]
    return [image.convert(mode) for image, mode in zip(images, ["RGB", "RGB", "L", "RGBA", "P", "1"], strict=True)]


def shake(model: nn.Module, seed: int) -> None:
    """Weights large enough that embeddings of different inputs differ, and logit_scale as trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            # An embedding's rows are of about length 1 a number, a matrix keeps its input's size.
            scale = 0.5 if "embedding" in name else 1.5 / fan_in**0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(noise * scale + (1.0 if "norm" in name and "weight" in name else 0.0))
        for name, parameter in model.named_parameters():
            if name.endswith("logit_scale"):
                parameter.fill_(LOG_100)


def small_config(*, projection: int = 16, eos: int = 1313):
    """A CLIPConfig for the tiny tokenizer's 1,314 tokens, 24 a text, and pictures of 32 x 32."""
    from transformers import CLIPConfig

    towers = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**towers, "vocab_size": 1314, "max_position_embeddings": 24, "eos_token_id": eos, "bos_token_id": 1312}
    vision = {**towers, "image_size": SIZE, "patch_size": 8}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)


def save_small_clip(folder: Path, *, seed: int = 0) -> Path:
    """A CLIPModel's folder with its tokenizer and preprocessor_config.json, as published rewards have them."""
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel(small_config())
    shake(model, seed)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    save_rule(folder)
    return folder


def save_rule(folder: Path, **changes: object) -> None:
    """transformers' preprocessor_config.json of pictures of 32 x 32, changed where the caller says."""
    rule = {
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.25],
        "resample": 3,
        "size": {"shortest_edge": SIZE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps({**rule, **changes}), encoding="utf-8")


def add_small_architecture(folder: Path, name: str, *, quick_gelu: bool = False) -> str:
    """Make a tiny CLIP known to open_clip by that name."""
    import open_clip

    config = {
        "embed_dim": 16,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    (folder / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
    open_clip.add_model_config(folder / f"{name}.json")
    return name


def small_open_clip(name: str, *, seed: int = 0):
    """Such a CLIP of random weights."""
    import open_clip

    model = open_clip.CLIP(**open_clip.get_model_config(name))
    shake(model, seed)
    return model.eval()
