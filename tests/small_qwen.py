"""Qwen-VL models of the real classes with random weights and a small tokenizer, saved as the published ones are."""

from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
SPECIAL += ("<|video_pad|>",)
# What Qwen2-VL's own template writes for one picture and one text (its tokenizer_config.json on the hub).
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MERGES = "Y e|Ye s|y e|ye s|Ġ Yes|Ġ yes|N o|n o|Ġ No|Ġ no|t h|th e|Ġ the|i n|a t|o n|e r|r e|a n|an d|i s|e s"
CLASSES = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
}
VISION = {
    "qwen2_vl": {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
    "qwen2_5_vl": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 32,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
    "qwen3_vl": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 32,
        "patch_size": 16,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    },
}


def save_processor(folder: Path, *, patch_size: int = 14) -> Qwen2VLProcessor:
    """A byte-level BPE in which Yes, yes, " Yes" and " yes" are single tokens, and the picture processor beside it."""
    merges = [(left, right) for left, right in (merge.split() for merge in MERGES.split("|"))]
    words = sorted(pre_tokenizers.ByteLevel.alphabet()) + [left + right for left, right in merges]
    raw = Tokenizer(models.BPE(vocab={word: place for place, word in enumerate(words)}, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer = Qwen2TokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    image = Qwen2VLImageProcessor(size=size, patch_size=patch_size)
    video = Qwen2VLVideoProcessor(patch_size=patch_size)
    processor = Qwen2VLProcessor(image, tokenizer, video, chat_template=TEMPLATE)
    processor.save_pretrained(folder)
    return processor


def save_model(folder: Path, kind: str) -> torch.nn.Module:
    """A model of two layers and 32 channels in float32, whose weights are the same wherever it is built."""
    processor = save_processor(folder, patch_size=VISION[kind].get("patch_size", 14))
    ids = {name: processor.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    ids |= {name: processor.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    text = {
        "vocab_size": len(processor.tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if kind == "qwen3_vl":
        text["head_dim"] = 16
    config_class, model_class = CLASSES[kind]
    config = config_class(
        text_config=text,
        vision_config={"depth": 2, "num_heads": 2, **VISION[kind]},
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=False,
    )
    model = model_class(config).float().eval()
    fill(model)
    model.save_pretrained(folder)
    return model


def fill(module: torch.nn.Module) -> None:
    """Weights that numpy promises never to change: N(0, 2 / inputs) in matrices, N(1, 0.1) in norms, N(0, 0.1) else."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = np.random.RandomState(crc32(name.encode())).standard_normal(tuple(weight.shape))
            if weight.ndim > 1:
                noise *= (2 / weight[0].numel()) ** 0.5
            else:
                noise = 0.1 * noise + name.endswith("weight")
            weight.copy_(torch.from_numpy(noise))


def picture(width: int, height: int, *, phase: int) -> Image.Image:
    """Coloured stripes and a ramp."""
    y, x = np.mgrid[:height, :width]
    red, green = (x * 7 + phase * 50) % 256, (y * 3 + x + phase) % 256
    return Image.fromarray(np.stack([red, green, (x * y // 16) % 256], -1).astype(np.uint8))
