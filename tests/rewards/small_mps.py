"""MPS's cross-attention in its published names and shapes, with random weights."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.rewards.small_clip import TOKENIZER, save_rule, shake, small_config

WIDTH, HEADS = 128, 2


def cross_tensors(generator: torch.Generator) -> dict[str, Tensor]:
    """The published names and shapes (Kwai-Kolors/MPS:trainer/models/cross_modeling.py), in random numbers."""
    inverse = 1 / 10000 ** (torch.arange(0, 64, 2) / 64)
    found: dict[str, Tensor] = {}
    for layer in range(4):
        read, own = f"cross_model.layers.{layer}.0.fn", f"cross_model.layers.{layer}.1.fn"
        shapes = {
            f"{read}.to_q.weight": (64 * HEADS, WIDTH),
            f"{read}.to_kv.weight": (128, WIDTH),
            f"{read}.to_out.weight": (WIDTH, 64 * HEADS),
            f"{read}.ff.0.weight": (8 * WIDTH, WIDTH),
            f"{read}.ff.2.weight": (WIDTH, 4 * WIDTH),
            f"{own}.fused_attn_ff_proj.weight": (64 * HEADS + 128 + 8 * WIDTH, WIDTH),
            f"{own}.attn_out.weight": (WIDTH, 64 * HEADS),
            f"{own}.ff_out.1.weight": (WIDTH, 4 * WIDTH),
        }
        found |= {k: torch.randn(s, generator=generator) * 1.5 / s[1] ** 0.5 for k, s in shapes.items()}
        for part in (read, own):
            found[f"{part}.norm.weight"] = 1 + 0.1 * torch.randn(WIDTH, generator=generator)
            found[f"{part}.norm.bias"] = torch.zeros(WIDTH)
        found[f"{own}.rotary_emb.inv_freq"] = inverse.clone()
    return found


def small_clip():
    """The CLIP of WIDTH numbers."""
    from transformers import CLIPModel

    model = CLIPModel(small_config(projection=WIDTH))
    shake(model, 5)
    return model.eval()


def all_tensors() -> dict[str, Tensor]:
    """The whole state dict."""
    clip = {f"model.{name}": tensor for name, tensor in small_clip().state_dict().items()}
    return {**clip, **cross_tensors(torch.Generator().manual_seed(6))}


def write_processor(folder: Path) -> Path:
    """A CLIP's folder without weights, as the published processor is used."""
    small_config(projection=WIDTH).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder)
    save_rule(folder)
    return folder


def write_weights(folder: Path) -> Path:
    """The state dict as a file."""
    save_file(all_tensors(), folder / "mps.safetensors")
    return folder / "mps.safetensors"
