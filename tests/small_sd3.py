"""A random SD3 pipeline of real diffusers classes, the size of `tests.small_sdxl`, with or without T5."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5TokenizerFast

from tests.small_sdxl import LETTERS, SIZE, small_text_encoder, small_tokenizer, small_vae

SHIFT = 3.0
SHIFT_FACTOR = 0.1
TOKENS = 4
"""A max_sequence_length for the tests."""


def small_t5() -> tuple[T5EncoderModel, T5TokenizerFast]:
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    tokenizer = T5TokenizerFast(vocab=[*marks, *((letter, -3.0) for letter in LETTERS)], extra_ids=0)
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config), tokenizer


def small_transformer() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=SIZE // 4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=SIZE // 8,
        qk_norm="rms_norm",
    )


def save_pipeline(folder: Path, seed: int = 0, *, t5: bool = False, **scheduler: object) -> Path:
    """The pipeline in the folder; equal seeds give equal weights, T5's aside."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = small_tokenizer(folder / "vocabulary")
        vae = small_vae()
        vae.register_to_config(shift_factor=SHIFT_FACTOR)
        pipeline = StableDiffusion3Pipeline(
            small_transformer(),
            FlowMatchEulerDiscreteScheduler(**{"shift": SHIFT, **scheduler}),
            vae,
            small_text_encoder(CLIPTextModelWithProjection, tokenizer),
            tokenizer,
            small_text_encoder(CLIPTextModelWithProjection, tokenizer),
            tokenizer,
            *(small_t5() if t5 else (None, None)),
        )
    pipeline.save_pretrained(folder)
    return folder
