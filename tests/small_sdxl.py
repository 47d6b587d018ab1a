"""A random SDXL pipeline of real diffusers classes, small enough for milliseconds a step, and pairs to train it on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 8
SIZE = 32
"""Pixels; latents are 4 x 8 x 8."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MERGES = (("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>"))
PROMPTS = ("red cat", "a dog", "two cats", "old red car")
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def small_tokenizer(folder: Path) -> CLIPTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*LETTERS, *(letter + "</w>" for letter in LETTERS), *(a + b for a, b in MERGES), BEGIN, END]
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    marks = {"unk_token": END, "bos_token": BEGIN, "eos_token": END, "pad_token": END}
    return CLIPTokenizer(*files, **marks, model_max_length=LENGTH)


def small_text_encoder(cls: type, tokenizer: CLIPTokenizer) -> torch.nn.Module:
    return cls(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            # SDXL reads the layer before the last.
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            projection_dim=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def small_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
        norm_num_groups=8,
    )


def small_vae() -> AutoencoderKL:
    """An autoencoder whose latents tell pictures apart: unlike a random one's, they are not mostly noise."""
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
        scaling_factor=0.5,
    )
    with torch.no_grad():
        mean, log_variance = vae.quant_conv.weight.chunk(2)
        mean.mul_(10)
        log_variance.zero_()
        vae.quant_conv.bias[4:] = -10.0
    return vae


def save_pipeline(folder: Path, seed: int = 0, **scheduler: object) -> Path:
    """The pipeline in the folder; equal seeds give equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = small_tokenizer(folder / "vocabulary")
        pipeline = StableDiffusionXLPipeline(
            small_vae(),
            small_text_encoder(CLIPTextModel, tokenizer),
            small_text_encoder(CLIPTextModelWithProjection, tokenizer),
            tokenizer,
            tokenizer,
            small_unet(),
            DDPMScheduler(**{**SCHEDULE, **scheduler}),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def save_pairs(
    folder: Path,
    count: int = 8,
    size: tuple[int, int] = (SIZE, SIZE),
    seed: int = 0,
    prompts: Sequence[str] = PROMPTS,
) -> Path:
    """pairs.jsonl with pictures beside it; the chosen are bright and warm, the rejected dark and cold, with noise."""
    draws = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for place in range(count):
        names = {}
        for side, colour in (("chosen", (220, 160, 60)), ("rejected", (30, 60, 120))):
            noise = draws.normal(0, 12, (size[1], size[0], 3))
            picture = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            names[side] = f"{side}-{place}.png"
            Image.fromarray(picture).save(folder / names[side])
        lines.append(json.dumps({"prompt": prompts[place % len(prompts)], **names}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "pairs.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The trained tensors of a finished run."""
    lora = folder / "pytorch_lora_weights.safetensors"
    return load_file(lora if lora.is_file() else folder / "unet" / "diffusion_pytorch_model.safetensors")
